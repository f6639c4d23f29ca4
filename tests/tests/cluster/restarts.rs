//! Pods that come and go under load: rolling restarts and scaling.

use crate::kubernetes::{Namespace, full};
use crate::load::Load;
use crate::turns;

#[test]
fn no_request_fails_while_a_deployment_restarts_and_scales() {
    let _turn = turns::alone();
    let namespace = Namespace::meshed("restarts");
    namespace.serve_web(3);
    let load = Load::start(&namespace, "load", "http://web", 500);
    let before = load.totals();
    for _ in 0..if full() { 20 } else { 3 } {
        namespace.kubectl(&["rollout", "restart", "deployment/web"]);
        namespace.rolled_out("deployment/web");
    }
    let restarted = load.totals();
    println!("restarts: {before:?} to {restarted:?}");
    for replicas in ["--replicas=6", "--replicas=2"] {
        namespace.kubectl(&["scale", "deployment/web", replicas]);
        namespace.rolled_out("deployment/web");
    }
    println!("scaling: to {:?}", load.assert_none_failed(&restarted));
}
