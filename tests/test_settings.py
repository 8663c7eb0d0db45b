import json
import os
from dataclasses import replace

import pytest

from predictions.errors import InputError
from predictions.hbase.server import Server
from predictions.settings import load_settings

GOOD = """
name = "orders"
[database]
url = "sqlite:///data/orders.db"
table = "orders"
id = "id"
[model]
label = "paid"
features = ["amount"]
[hadoop]
storage = "here"
python = "../bin/python"
"""
TLS = f"""{GOOD}
[hbase]
thrift = "db7:9095"
transport = "framed"
protocol = "compact"
tls = true
ca = "certificates/ca.pem"
timeout = 2.5
load_timeout = 60
"""


@pytest.fixture
def write(tmp_path):
    def write(text):
        path = tmp_path / "predictions.toml"
        path.write_text(text)
        return path

    return write


def test_relative_paths_are_relative_to_the_file(write, tmp_path):
    settings = load_settings(write(GOOD))
    assert settings.database.url == f"sqlite:///{tmp_path}/data/orders.db"
    assert settings.hadoop.storage == f"{tmp_path}/here"
    assert settings.hadoop.python == os.path.normpath(tmp_path / "../bin/python")
    assert settings.hbase.thrift == "127.0.0.1:9090"


@pytest.mark.parametrize("table", ["[model]", "[[model]]"])
def test_paths_of_models_are_relative_to_the_file(write, tmp_path, table):
    own = '"amount"]\nfrom = "file:fitted/model.skops"\npackages = ["own-1.0-py3-none-any.whl"]'
    [model] = load_settings(write(GOOD.replace("[model]", table).replace('"amount"]', own))).models
    assert model.from_ == f"file:{tmp_path}/fitted/model.skops"
    assert model.packages == [tmp_path / "own-1.0-py3-none-any.whl"]


def test_a_connection_gets_what_the_settings_say(write, tmp_path):
    assert load_settings(write(GOOD)).hbase.server() == Server("127.0.0.1", 9090, timeout=10.0)
    hbase = load_settings(write(TLS)).hbase
    ca = f"{tmp_path}/certificates/ca.pem"
    assert hbase.server() == Server("db7", 9095, "framed", "compact", True, ca, 2.5, "hbase.timeout")


def test_loads_wait_longer_than_lookups(write):
    lookup, load = (load_settings(write(GOOD)).hbase.server(loading) for loading in (False, True))
    assert (load.timeout, load.timeout_setting) == (600.0, "hbase.load_timeout")
    assert replace(load, timeout=lookup.timeout, timeout_setting=lookup.timeout_setting) == lookup
    assert load_settings(write(TLS)).hbase.server(loading=True).timeout == 60


def test_a_link_counts_as_the_file_that_it_leads_to(write, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    link = tmp_path / "elsewhere" / "predictions.toml"
    link.symlink_to(write(GOOD))
    assert load_settings(link).hadoop.storage == f"{tmp_path}/here"


def test_the_environment_comes_before_the_file(write, monkeypatch):
    monkeypatch.setenv("PREDICTIONS_HBASE_THRIFT", "db.example:9999")
    monkeypatch.setenv("PREDICTIONS_GATES_MAX_FAILED", "0.5")
    monkeypatch.setenv("PREDICTIONS_NAME", "other")
    settings = load_settings(write(GOOD))
    assert (settings.hbase.thrift, settings.gates.max_failed, settings.name) == ("db.example:9999", 0.5, "other")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('table = "orders"', 'tabel = "orders"', "database.tabel: no such key; did you mean 'table'?"),
        ('id = "id"', "", "database.id: missing"),
        ("[model]", "[modle]", "modle: no such key; did you mean 'model'?"),
        (
            'table = "orders"',
            'table = "orders"\nquery = "SELECT 1"',
            "database: name either a table (or view) or a query",
        ),
        ('features = ["amount"]', 'features = ["amount", "paid"]', "'paid' is the label"),
        ('features = ["amount"]', 'features = ["amount", "amount"]', "named twice: amount"),
        ('features = ["amount"]', "features = []", "model.features"),
        ('name = "orders"', 'name = "../x"', "name: "),
        ('label = "paid"', 'label = "paid"\n[hbase]\nthrift = "nowhere"', "hbase.thrift: must be HOST:PORT"),
        ('label = "paid"', 'label = "paid"\n[hbase]\ntransport = "http"', "hbase.transport: "),
        ('label = "paid"', 'label = "paid"\n[hbase]\nprotocol = "json"', "hbase.protocol: "),
        ('label = "paid"', 'label = "paid"\n[hbase]\ntimeout = 0', "hbase.timeout: "),
        ('label = "paid"', 'label = "paid"\n[hbase]\nload_timeout = -1', "hbase.load_timeout: "),
        ('label = "paid"', 'label = "paid"\n[hbase]\nca_file = "x"', "hbase.ca_file: no such key"),
        ('label = "paid"', 'label = "paid"\n[gates]\nmax_failed = 2', "gates.max_failed"),
        ('name = "orders"', "name = ", "not TOML"),
    ],
)
def test_a_wrong_setting_is_named_by_its_key(write, old, new, message):
    assert old in GOOD
    text = GOOD.replace(old, new)
    if "[hbase]" in new or "[gates]" in new:
        text = text.replace('features = ["amount"]\n', "").replace(
            new, new.replace("\n[", '\nfeatures = ["amount"]\n[')
        )
    with pytest.raises(InputError) as error:
        load_settings(write(text))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("PREDICTIONS_MODEL_FEATURES", "carrier", "JSON"),
        ("PREDICTIONS_HBASE_THRIFT", "host:99999", "hbase.thrift: must be HOST:PORT"),
        ("PREDICTIONS_HBAS_THRIFT", "host:1", "PREDICTIONS_HBAS_THRIFT: no such variable"),
        ("PREDICTIONS_HBASE_TRIFT", "host:1", "hbase.trift: no such key"),
        ("PREDICTIONS_HBASE_TIMEOUT", "soon", "hbase.timeout: "),
    ],
)
def test_a_wrong_variable_is_named(write, monkeypatch, name, value, message):
    monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=message):
        load_settings(write(GOOD))


def test_paths_in_variables_are_relative_to_the_working_directory(write, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PREDICTIONS_HADOOP_ENVIRONMENT", "environment.tar.gz")
    monkeypatch.setenv("PREDICTIONS_HADOOP_PYTHON", "bin/python")
    monkeypatch.setenv("PREDICTIONS_HBASE_CA", "ca.pem")
    monkeypatch.setenv("PREDICTIONS_HBASE_LOAD_TIMEOUT", "7")
    hbase, hadoop = load_settings(write(GOOD)).hbase, load_settings(write(GOOD)).hadoop
    assert (hbase.ca, hbase.load_timeout) == (tmp_path / "ca.pem", 7)
    assert (hadoop.environment, hadoop.python) == (tmp_path / "environment.tar.gz", f"{tmp_path}/bin/python")


def test_a_missing_file_says_what_to_do(tmp_path):
    with pytest.raises(InputError, match="predictions init"):
        load_settings(tmp_path / "none.toml")


PROPERTIES = (
    GOOD
    + """
[hadoop.properties]
"mapreduce.job.queuename" = "night"
"mapreduce.map.memory.mb" = 2048
"mapreduce.map.speculative" = true
"mapreduce.job.reduce.slowstart.completedmaps" = 0.05
"""
)


def test_properties_are_written_as_hadoop_reads_them(write):
    assert load_settings(write(GOOD)).hadoop.properties == {}
    assert load_settings(write(PROPERTIES)).hadoop.properties == {
        "mapreduce.job.queuename": "night",
        "mapreduce.map.memory.mb": "2048",
        "mapreduce.map.speculative": "true",
        "mapreduce.job.reduce.slowstart.completedmaps": "0.05",
    }


def test_properties_of_the_environment_come_before_those_of_the_file(write, monkeypatch):
    properties = {"mapreduce.map.memory.mb": 4096, "mapreduce.map.speculative": False, "yarn.x": "y=z w"}
    monkeypatch.setenv("PREDICTIONS_HADOOP_PROPERTIES", json.dumps(properties))
    assert load_settings(write(PROPERTIES)).hadoop.properties == {
        "mapreduce.job.queuename": "night",
        "mapreduce.map.memory.mb": "4096",
        "mapreduce.map.speculative": "false",
        "mapreduce.job.reduce.slowstart.completedmaps": "0.05",
        "yarn.x": "y=z w",
    }


@pytest.mark.parametrize(
    "line",
    ['"a b" = 1', '"a=b" = 1', '"" = 1', '"a\\n" = 1', '"a" = [1]', "mapreduce.map.memory.mb = 1", '"a" = 2026-11-22'],
)
def test_invalid_properties_are_refused(write, line):
    with pytest.raises(InputError, match=r"hadoop\.properties\."):
        load_settings(write(f"{GOOD}\n[hadoop.properties]\n{line}\n"))


def test_properties_in_a_variable_are_json(write, monkeypatch):
    monkeypatch.setenv("PREDICTIONS_HADOOP_PROPERTIES", "mapreduce.map.memory.mb=1")
    with pytest.raises(InputError, match=r"PREDICTIONS_|hadoop\.properties"):
        load_settings(write(GOOD))
