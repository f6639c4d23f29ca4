//! Golden signals from the proxies' metrics: the text is parsed, counters of successive scrapes are
//! subtracted, and the differences are summed over all pods. Pure.

use std::collections::{BTreeMap, HashMap, VecDeque};

/// Series that are read from one proxy: more than its cap.
const MAX_SERIES: usize = 200_000;
/// Number of scrapes in the window.
const WINDOW: usize = 5;

/// One line of a scrape.
#[derive(Clone, Debug, PartialEq)]
struct Sample<'a> {
    name: &'a str,
    labels: Vec<(&'a str, String)>,
    value: f64,
}

/// The labels that requests are counted by.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// As `shop/catalog`.
    pub service: String,
    /// `None`: the sum over all routes and backends.
    pub part: Option<Part>,
}

/// A part of a service's requests.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Part {
    /// The HTTPRoute and its rule, as `shop/catalog split`.
    pub route: String,
    /// As `shop/catalog-v1:80`.
    pub backend: String,
}

/// Counts within a period.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Signals {
    pub responses: f64,
    pub failures: f64,
    pub retries: f64,
    pub tcp_bytes: f64,
    /// Cumulative counts of responses by upper bound in seconds.
    buckets: BTreeMap<Bound, f64>,
}

/// A bucket's upper bound, which has a total order unlike floating-point numbers in general.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Bound(f64);

impl Eq for Bound {}

impl Ord for Bound {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.total_cmp(&other.0)
    }
}

impl PartialOrd for Bound {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Signals {
    fn add(&mut self, other: &Self) {
        self.responses += other.responses;
        self.failures += other.failures;
        self.retries += other.retries;
        self.tcp_bytes += other.tcp_bytes;
        for (bound, count) in &other.buckets {
            *self.buckets.entry(*bound).or_default() += count;
        }
    }

    /// The share of successful responses, in percent; `None` without responses.
    pub fn success(&self) -> Option<f64> {
        (self.responses > 0.0).then(|| 100.0 * (1.0 - self.failures / self.responses))
    }

    /// The latency quantile in seconds, computed as Prometheus' histogram_quantile does.
    pub fn quantile(&self, share: f64) -> Option<f64> {
        let total = *self.buckets.values().next_back()?;
        if total <= 0.0 {
            return None;
        }
        let rank = share * total;
        let (mut below, mut count_below) = (0.0, 0.0);
        for (Bound(bound), count) in &self.buckets {
            if *count >= rank {
                if bound.is_infinite() || count <= &count_below {
                    return Some(below);
                }
                return Some(
                    below + (bound - below) * (rank - count_below) / (count - count_below),
                );
            }
            (below, count_below) = (*bound, *count);
        }
        Some(below)
    }
}

/// Turns scrapes into figures.
#[derive(Default)]
pub struct Meter {
    /// The last counters by pod uid and series.
    last: HashMap<String, HashMap<String, f64>>,
    /// Seconds between two scrapes, and the counts in them.
    window: VecDeque<(f64, BTreeMap<Key, Signals>)>,
}

impl Meter {
    /// Adds one scrape of each pod, `seconds` after the last one.
    pub fn scraped(&mut self, seconds: f64, scrapes: &[(String, String)]) {
        let mut changes: BTreeMap<Key, Signals> = BTreeMap::new();
        let mut now = HashMap::new();
        for (uid, text) in scrapes {
            let before = self.last.get(uid);
            let mut counters = HashMap::new();
            for line in text.lines().take(MAX_SERIES) {
                let Some(sample) = parse(line) else {
                    continue;
                };
                let series = line.rsplit_once(' ').map_or(line, |(series, _)| series);
                // The counts of a new pod from before its first scrape do not count; the counters
                // of a restarted one begin at 0.
                let change = match before.map(|before| before.get(series)) {
                    Some(Some(before)) if *before <= sample.value => sample.value - before,
                    Some(_) => sample.value,
                    None => 0.0,
                };
                counters.insert(series.to_owned(), sample.value);
                count(&sample, change, &mut changes);
            }
            now.insert(uid.clone(), counters);
        }
        self.last = now;
        if self.window.len() == WINDOW {
            self.window.pop_front();
        }
        self.window.push_back((seconds, changes));
    }

    /// The period of the figures in seconds, and the figures.
    pub fn figures(&self) -> (f64, BTreeMap<Key, Signals>) {
        let mut sum: BTreeMap<Key, Signals> = BTreeMap::new();
        let mut seconds = 0.0;
        for (duration, changes) in &self.window {
            seconds += duration;
            for (key, signals) in changes {
                sum.entry(key.clone()).or_default().add(signals);
            }
        }
        (seconds, sum)
    }
}

/// Adds a counter's change to the figures of its service, and of its route and backend.
fn count(sample: &Sample<'_>, change: f64, changes: &mut BTreeMap<Key, Signals>) {
    let label = |name: &str| {
        sample
            .labels
            .iter()
            .find(|(label, _)| *label == name)
            .map_or("", |(_, value)| value.as_str())
    };
    // Only the client's side has the `service` label; retries are only counted there.
    let known = match sample.name {
        "naru_retries_total" => label("outcome") == "sent",
        "naru_responses_total"
        | "naru_response_duration_seconds_bucket"
        | "naru_tcp_bytes_total" => label("direction") == "outbound",
        _ => false,
    };
    if !known || label("service").is_empty() {
        return;
    }
    let service = format!("{}/{}", label("namespace"), label("service"));
    let route = match label("rule") {
        "" => label("route").to_owned(),
        rule => format!("{} {rule}", label("route")),
    };
    let mut keys = vec![Key {
        service: service.clone(),
        part: None,
    }];
    // Without a route there is nothing to distinguish, and retries have no backend label.
    if !route.is_empty() && sample.name != "naru_retries_total" {
        let backend = label("backend").to_owned();
        keys.push(Key {
            service,
            part: Some(Part { route, backend }),
        });
    }
    for key in keys {
        let signals = changes.entry(key).or_default();
        match sample.name {
            "naru_retries_total" => signals.retries += change,
            "naru_tcp_bytes_total" => signals.tcp_bytes += change,
            "naru_responses_total" => {
                signals.responses += change;
                if label("class") == "5xx" || label("status").is_empty() {
                    signals.failures += change;
                }
            }
            _ => {
                let bound = match label("le") {
                    "+Inf" => f64::INFINITY,
                    bound => bound.parse().unwrap_or(f64::INFINITY),
                };
                *signals.buckets.entry(Bound(bound)).or_default() += change;
            }
        }
    }
}

fn parse(line: &str) -> Option<Sample<'_>> {
    if line.starts_with('#') {
        return None;
    }
    let end = line.find(['{', ' '])?;
    let (name, mut rest) = line.split_at(end);
    let mut labels = Vec::new();
    if let Some(inner) = rest.strip_prefix('{') {
        rest = inner;
        while let Some((label, after)) = rest.split_once("=\"") {
            let (value, after) = quoted(after)?;
            labels.push((label, value));
            rest = after.strip_prefix(',').unwrap_or(after);
            if rest.starts_with('}') {
                break;
            }
        }
        rest = rest.strip_prefix('}')?;
    }
    Some(Sample {
        name,
        labels,
        value: rest.split_whitespace().next()?.parse().ok()?,
    })
}

/// A label's value up to its closing quote, and the rest.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut letters = text.char_indices();
    while let Some((at, letter)) = letters.next() {
        match letter {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => match letters.next()?.1 {
                'n' => value.push('\n'),
                other => value.push(other),
            },
            other => value.push(other),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const LABELS: &str = "direction=\"outbound\",namespace=\"shop\",service=\"catalog\",\
        port=\"80\",route=\"shop/catalog\",rule=\"split\",backend=\"shop/catalog-v1:80\"";

    fn scrape(good: u32, bad: u32) -> Vec<(String, String)> {
        let text = format!(
            "# HELP naru_responses_total x\n\
             naru_responses_total{{{LABELS},status=\"200\",class=\"2xx\",reason=\"\"}} {good}\n\
             naru_responses_total{{{LABELS},status=\"503\",class=\"5xx\",reason=\"\"}} {bad}\n\
             naru_response_duration_seconds_bucket{{{LABELS},le=\"0.01\"}} {good}\n\
             naru_response_duration_seconds_bucket{{{LABELS},le=\"0.1\"}} {0}\n\
             naru_response_duration_seconds_bucket{{{LABELS},le=\"+Inf\"}} {0}\n\
             naru_retries_total{{namespace=\"shop\",service=\"catalog\",port=\"80\",\
             route=\"shop/catalog\",outcome=\"sent\"}} {bad}\n\
             naru_responses_total{{direction=\"inbound\",service=\"\",namespace=\"shop\"}} 99\n",
            good + bad
        );
        vec![("pod".to_owned(), text)]
    }

    #[test]
    fn lines_are_parsed_with_their_escapes() {
        let sample = parse(r#"a_total{x="1",y="q\"\\\n,}"} 2.5e1"#).unwrap();
        assert_eq!(sample.name, "a_total");
        assert_eq!(sample.labels[1], ("y", "q\"\\\n,}".to_owned()));
        assert_eq!(sample.value, 25.0);
        assert_eq!(parse("b 1").unwrap().labels, []);
        for wrong in ["", "# TYPE a counter", "a{x=\"1", "a{x=\"1\"}", "a x"] {
            assert_eq!(parse(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn figures_cover_what_happened_since_the_first_scrape() {
        let mut meter = Meter::default();
        meter.scraped(2.0, &scrape(1_000, 100));
        meter.scraped(2.0, &scrape(1_090, 110));
        let (seconds, figures) = meter.figures();
        assert_eq!(seconds, 4.0);
        let keys: Vec<_> = figures
            .keys()
            .map(|key| Some((&*key.part.as_ref()?.route, &*key.part.as_ref()?.backend)))
            .collect();
        assert_eq!(
            keys,
            [None, Some(("shop/catalog split", "shop/catalog-v1:80"))]
        );
        for signals in figures.values() {
            assert_eq!((signals.responses, signals.failures), (100.0, 10.0));
            assert_eq!(signals.success(), Some(90.0));
        }
    }

    #[test]
    fn a_restarted_proxy_counts_from_zero() {
        let mut meter = Meter::default();
        meter.scraped(1.0, &scrape(1_000, 0));
        meter.scraped(1.0, &scrape(7, 0));
        let (_, figures) = meter.figures();
        assert_eq!(figures.values().next().unwrap().responses, 7.0);
    }

    #[test]
    fn quantiles_are_interpolated_within_a_bucket() {
        let mut signals = Signals::default();
        for (bound, count) in [(0.01, 50.0), (0.1, 90.0), (f64::INFINITY, 100.0)] {
            signals.buckets.insert(Bound(bound), count);
        }
        let quantile = |share| (signals.quantile(share).unwrap() * 1000.0).round();
        assert_eq!(quantile(0.25), 5.0);
        assert_eq!(quantile(0.5), 10.0);
        assert_eq!(quantile(0.7), 55.0);
        assert_eq!(quantile(0.99), 100.0, "the last bound that there is");
        assert_eq!(Signals::default().quantile(0.5), None);
    }
}
