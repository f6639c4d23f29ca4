//! PostgreSQL through two sidecars: the time to connect, and a dump and restore of a large table.

use std::time::Duration;

use crate::mesh::{Mesh, Running, Workload, full, host, need};

/// The additional time for connecting through two sidecars, in milliseconds, when figures are
/// requested.
const CONNECT_COST: f64 = 5.0;
/// The same on a busy machine: less than any timeout while waiting for a silent peer.
const CONNECT_COST_BUSY: f64 = 100.0;
/// Peak memory of a proxy, in KiB.
const PROXY_MEMORY: u64 = 40 * 1024;

/// A database that accepts all clients of its port.
fn postgres(mesh: &Mesh, name: &str, port: u16) -> Workload {
    need("pg_config", "postgresql postgresql-client libpq-dev");
    need("setpriv", "util-linux");
    let data = mesh.path(name);
    let data = data.display();
    let binaries = host("ls -d /usr/lib/postgresql/*/bin | tail -1");
    let binaries = binaries.trim();
    let user = "setpriv --reuid=postgres --regid=postgres --clear-groups";
    host(&format!(
        "install -d -o postgres -g postgres -m 700 {data}\n\
         cd {data}\n\
         {user} {binaries}/initdb --no-sync -A trust -D {data} > /dev/null\n\
         echo 'host all all all trust' >> {data}/pg_hba.conf"
    ));
    // Fast shutdown, as in its image (STOPSIGNAL SIGINT).
    let script = format!(
        "cd {data}; {user} {binaries}/postgres -D {data} -p {port} -c listen_addresses='*' \
         -c unix_socket_directories= -c fsync=off -c max_wal_size=4GB & \
         trap 'kill -INT $!' TERM; wait $!; trap - TERM; wait $!"
    );
    Workload::new(name, &script).port(port, port, None)
}

#[test]
fn connecting_through_two_sidecars_has_no_delay() {
    need("pgbench", "postgresql");
    let mesh = Mesh::new();
    mesh.put(
        &Workload::new("client", "sleep infinity")
            .annotate("naru.dev/skip-outbound-ports", "5433")
            .deployment(),
    );
    mesh.add(&postgres(&mesh, "meshed", 5432));
    // Without a sidecar and a Service address: the pod itself.
    let direct = postgres(&mesh, "direct", 5433).annotate("naru.dev/inject", "disabled");
    mesh.add(&direct.headless());
    mesh.file("one.sql", "SELECT 1;\n");
    let written = mesh.run(
        "measure() { pgbench -h $1 -p $2 -U postgres -n -C -c 1 -t 100 -f one.sql postgres |\n\
           sed -n \"s/average connection time = \\(.*\\) ms.*/$1 \\1/p\"; }\n\
         for round in 1 2 3; do measure meshed 5432; measure direct 5433; done",
    );
    println!("milliseconds to connect:\n{written}");
    // The best of some rounds, to exclude other load of the machine.
    let best = |name: &str| {
        written
            .lines()
            .filter_map(|line| line.strip_prefix(name)?.trim().parse::<f64>().ok())
            .fold(f64::INFINITY, f64::min)
    };
    let cost = best("meshed") - best("direct");
    let bound = if full() {
        CONNECT_COST
    } else {
        CONNECT_COST_BUSY
    };
    assert!(cost.is_finite() && cost <= bound, "{written}");
}

#[test]
fn a_large_table_is_copied_both_ways_intact_in_flat_memory() {
    need("psql", "postgresql-client");
    let mesh = Mesh::new().timeout(Duration::from_secs(600));
    mesh.add(&postgres(&mesh, "postgres", 5432));
    let size = if full() { "1G" } else { "64M" };
    host(&format!(
        "head -c {size} /dev/urandom | base64 -w 1000 > {}",
        mesh.path("table").display()
    ));
    let mut running = mesh.start_in(
        "client",
        "psql() { command psql -h postgres -U postgres -v ON_ERROR_STOP=1 -q \"$@\" postgres; }\n\
         psql -c 'SELECT 1' > /dev/null\n\
         echo warm; until [[ -e go ]]; do sleep 0.05; done\n\
         psql -c 'CREATE UNLOGGED TABLE t (line text)' -c \"\\\\copy t FROM 'table'\"\n\
         psql -c 'SET synchronize_seqscans = off' -c \"\\\\copy t TO 'back'\"\n\
         cmp table back\n\
         echo intact; until [[ -e done ]]; do sleep 0.05; done",
    );
    running.wait_for("warm");
    let before = peaks(&running);
    mesh.file("go", "");
    running.wait_for("intact");
    let after = peaks(&running);
    println!(
        "KiB of the proxies at their most: {before:?} before, {after:?} after {size} each way"
    );
    mesh.file("done", "");
    running.succeed();
    assert!(after.len() >= 2, "two sidecars at least: {after:?}");
    assert!(after.iter().all(|peak| *peak < PROXY_MEMORY), "{after:?}");
}

/// The peak memory of each proxy, in KiB.
fn peaks(running: &Running) -> Vec<u64> {
    running
        .processes("naru-proxy")
        .into_iter()
        .filter_map(|pid| {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
            let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
            line.split_whitespace().nth(1)?.parse().ok()
        })
        .collect()
}
