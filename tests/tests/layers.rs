//! Says, at every `cargo test`, which layers of tests it does not run and what they need.

fn main() {
    let namespaces = if cfg!(feature = "namespaces") {
        "built"
    } else {
        "NOT run here"
    };
    println!(
        "layers of tests:\n\
         \x20 unit, sockets  need nothing but the toolchain\n\
         \x20 namespaces     needs root and real programs; {namespaces}\n\
         `tests/run` installs what is missing and runs all of them, `tests/run LAYER…` some."
    );
}
