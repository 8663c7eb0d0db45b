import sys; sys.path.insert(0,"/work/main/tests")
from test_load import *
def test_cut(release):
    parts = release.put(orders(40))
    release.folder.storage.fs.pipe_file(release.part(2), join_lines(parts[2])[:-2])
    release.load(How("hadoop"), settings=release.made.settings)
    print(release.checkpoints(), release.state(), release.cells()[parse_line(parts[2][-1]).row_key])
    print(release.run("verify","--full").stderr)
    assert 0
