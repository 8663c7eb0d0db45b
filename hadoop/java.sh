# Sourced by hadoop/bin/*: runs a Java class of the embedded cluster.
# CLUSTER_DIR names the cluster's folder, as for hadoop/cluster.

here=$(cd -P "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")" && pwd)
cluster=${CLUSTER_DIR:-$here/../var/cluster}
lib=$(cd -P "$here/.." && pwd)/var/lib

run_java() {
    if [ ! -f "$cluster/conf/java.options" ]; then
        echo "$(basename "$0"): the embedded cluster was never started; run hadoop/cluster start" >&2
        exit 4
    fi
    export HADOOP_CONF_DIR=$cluster/conf HADOOP_MAPRED_HOME=$lib
    # Commands run briefly, so the quick compiler alone is faster than both. config.py explains the order of -cp.
    exec java "@$cluster/conf/java.options" -XX:TieredStopAtLevel=1 -Xmx512m \
        -cp "$lib/*:$cluster/conf" "$@"
}
