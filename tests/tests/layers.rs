//! Prints, at every `cargo test`, the layers of tests that it does not run, and their requirements.

fn main() {
    let said = |built| if built { "built" } else { "NOT run here" };
    let namespaces = said(cfg!(feature = "namespaces"));
    let cluster = said(cfg!(feature = "cluster"));
    let instructions = said(cfg!(feature = "instructions"));
    println!(
        "layers of tests:\n\
         \x20 unit, fuzz, sockets need nothing but the toolchain\n\
         \x20 namespaces     needs root and real programs; {namespaces}\n\
         \x20 instructions   needs valgrind; {instructions}\n\
         \x20 chart          needs Python; NOT run here\n\
         \x20 conformance    needs what `cluster` does: the Gateway API's suite; NOT run here\n\
         \x20 cluster        needs root, Go and containerd: a Kubernetes of its own; {cluster}\n\
         `tests/run` installs what is missing and runs all of them, `tests/run LAYER…` some."
    );
}
