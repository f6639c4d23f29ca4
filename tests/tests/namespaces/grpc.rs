//! gRPC between a client and a server with the public library.

use crate::mesh::{Mesh, Workload, program, python};

fn server(protocol: Option<&str>) -> Workload {
    let script = format!("exec {} {} server 9000", python(), program("grpc_echo.py"));
    Workload::new("echo", &script).port(9000, 9000, protocol)
}

fn client(what: &str) -> String {
    format!("{} {} {what}", python(), program("grpc_echo.py"))
}

#[test]
fn every_kind_of_call_works_with_declared_grpc() {
    let mesh = Mesh::new();
    mesh.add(&server(Some("grpc")));
    mesh.run(&client("client dns:///echo:9000"));
}

#[test]
fn every_kind_of_call_works_without_a_declared_protocol() {
    let mesh = Mesh::new();
    mesh.add(&server(None));
    mesh.run(&client("client dns:///echo.test.svc.cluster.local:9000"));
}

#[test]
fn calls_of_one_channel_are_balanced_over_the_endpoints() {
    let mesh = Mesh::new();
    mesh.add(&server(Some("grpc")).replicas(3));
    let written = mesh.run(&client("spread dns:///echo:9000 300"));
    let shares: Vec<u32> = written
        .split_whitespace()
        .map(|share| share.parse().expect("a number"))
        .collect();
    assert_eq!(shares.len(), 3, "{written}");
    // After the third response, an endpoint that was slow on a busy machine is avoided for seconds:
    // only these are certain.
    assert!(shares.iter().all(|share| *share >= 3), "{written}");
}
