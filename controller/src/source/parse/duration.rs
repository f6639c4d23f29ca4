//! Durations of Gateway API (GEP-2257): one to four of `<number><unit>`, where the number has one
//! to five digits and the unit is `h`, `m`, `s` or `ms`.

/// Maximum digits of a number.
const MAX_DIGITS: usize = 5;
/// Maximum number of `<number><unit>` parts.
const MAX_PARTS: usize = 4;

/// The duration in milliseconds; `None`: invalid.
pub fn milliseconds(text: &str) -> Option<u64> {
    let mut rest = text;
    let mut total = 0;
    for _ in 0..MAX_PARTS {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        if digits == 0 || digits > MAX_DIGITS {
            return None;
        }
        let (number, after) = rest.split_at(digits);
        let (factor, after) = unit(after)?;
        total += number.parse::<u64>().ok()? * factor;
        if after.is_empty() {
            return Some(total);
        }
        rest = after;
    }
    None
}

/// Milliseconds of the leading unit, and the rest.
fn unit(text: &str) -> Option<(u64, &str)> {
    // "ms" before "m": an "s" never follows a minute.
    [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000)]
        .iter()
        .find_map(|(unit, factor)| Some((*factor, text.strip_prefix(unit)?)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_examples_of_the_specification_hold() {
        for (text, expected) in [
            ("0s", Some(0)),
            ("0h", Some(0)),
            ("1h", Some(3_600_000)),
            ("30m", Some(1_800_000)),
            ("10s", Some(10_000)),
            ("500ms", Some(500)),
            ("2h30m", Some(9_000_000)),
            ("150m", Some(9_000_000)),
            ("7s500ms", Some(7_500)),
            ("1h1h1h1h", Some(14_400_000)),
            ("1h1h1h1h1h", None),
            ("", None),
            ("1", None),
            ("1d", None),
            ("-1s", None),
            ("1.5s", None),
            ("100000s", None),
            ("1s ", None),
            ("s", None),
            ("1us", None),
        ] {
            assert_eq!(milliseconds(text), expected, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn it_agrees_with_the_specification_s_pattern(text in "([0-9]{0,6}(h|m|s|ms|us|)){0,5}") {
            let pattern = regex::Regex::new("^([0-9]{1,5}(h|m|s|ms)){1,4}$").unwrap();
            prop_assert_eq!(milliseconds(&text).is_some(), pattern.is_match(&text));
        }

        #[test]
        fn any_text_is_a_duration_or_invalid(text in "\\PC{0,20}") {
            let _ = milliseconds(&text);
        }

        #[test]
        fn a_sum_of_parts_is_their_sum(
            h in 0u64..100_000,
            m in 0u64..100_000,
            s in 0u64..100_000,
            ms in 0u64..100_000,
        ) {
            prop_assert_eq!(
                milliseconds(&format!("{h}h{m}m{s}s{ms}ms")),
                Some(h * 3_600_000 + m * 60_000 + s * 1_000 + ms)
            );
        }
    }
}
