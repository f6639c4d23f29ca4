//! What the private ways between two sidecars cost, each beside the library that could replace it.
//!
//! ```text
//! client's thread: lanes ─▶ carrier ═ TLS 1.3, loopback ═ carrier ─▶ server's thread
//! ```
//!
//! A lane stands for an app's connection: it sends a request of some bytes and awaits a response,
//! again and again. A carrier takes the bytes of all lanes to the server. Only the carriers of one
//! row are compared, so what lanes and server cost besides is the same for each of them. Both
//! threads have a runtime of their own, as a sidecar's worker has.
//!
//! `tests/bench/README.md` has the results, and how to run this.

mod carriers;
mod h2_streams;
mod lanes;
mod measure;
mod opaque;
mod rows;

use std::process::ExitCode;

use carriers::Carrier;
use rows::Row;

/// As in the sidecar.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

const ROUNDS: usize = 7;
const USAGE: &str = "wires [ROW…]               CPU time of each carrier in these rows, or in all
wires instructions [ROW…]  the same in instructions of user space, by valgrind
wires memory               memory of an idle connection";

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        // These two are for `instructions` and `memory`, which run this program again.
        ["once", row, carrier, operations] => {
            let (Some(row), Some(carrier)) = (Row::named(row), Carrier::named(carrier)) else {
                return usage();
            };
            let operations = operations.parse().expect("a number");
            measure::cpu_time(row, carrier, operations);
        }
        ["idle", carrier] => match Carrier::named(carrier) {
            Some(carrier) => println!("{:.0}", measure::idle_memory(carrier)),
            None => return usage(),
        },
        ["memory"] => {
            for carrier in [Carrier::Naru, Carrier::TokioRustls] {
                let bytes = measure::idle_memory_of_a_process(carrier);
                println!("{:<14} {bytes} bytes an end", carrier.name());
            }
        }
        ["instructions", ref rows @ ..] => {
            for row in chosen(rows) {
                table(row, "instructions", 1, measure::instructions);
            }
        }
        ref rows => {
            for row in chosen(rows) {
                table(row, "CPU µs", ROUNDS, |row, carrier| {
                    measure::cpu_time(row, carrier, row.operations)
                });
            }
        }
    }
    ExitCode::SUCCESS
}

fn usage() -> ExitCode {
    eprintln!("{USAGE}\n\nrows:");
    for row in rows::ALL {
        eprintln!("  {}", row.name);
    }
    ExitCode::FAILURE
}

fn chosen(names: &[&str]) -> Vec<&'static Row> {
    if let Some(unknown) = names.iter().find(|name| Row::named(name).is_none()) {
        usage();
        panic!("there is no row {unknown}");
    }
    let all = names.is_empty();
    let rows = rows::ALL.iter();
    rows.filter(|row| all || names.contains(&row.name))
        .collect()
}

/// Prints a row: for each carrier the median of the rounds and their range, and the median of its
/// ratios to the first one, Naru's.
fn table(
    row: &'static Row,
    unit: &str,
    rounds: usize,
    measure: impl Fn(&'static Row, Carrier) -> f64,
) {
    let mut figures = vec![Vec::new(); row.carriers.len()];
    for round in 0..rounds {
        // In turns, each time with another one first: whatever else disturbs the machine then
        // disturbs all of them.
        for turn in 0..row.carriers.len() {
            let at = (round + turn) % row.carriers.len();
            figures[at].push(measure(row, row.carriers[at]));
        }
    }
    println!("{} ({unit} per operation)", row.name);
    let first = figures[0].clone();
    for (carrier, figures) in row.carriers.iter().zip(&mut figures) {
        let ratios = figures.iter().zip(&first);
        let mut ratios: Vec<f64> = ratios.map(|(figure, first)| figure / first).collect();
        let ratio = median(&mut ratios);
        let middle = median(figures);
        let (least, most) = (figures[0], figures[figures.len() - 1]);
        println!(
            "  {:<14} {middle:>12.2} ({least:.2} to {most:.2}) {:>+7.1} %",
            carrier.name(),
            (ratio - 1.0) * 100.0
        );
    }
}

fn median(figures: &mut [f64]) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}
