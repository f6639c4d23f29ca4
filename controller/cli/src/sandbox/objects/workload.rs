//! From the spec of a Deployment or StatefulSet and its existing pods to the pods to start and
//! stop. Pure.

use super::template::Template;

/// The desired state of a workload.
#[derive(Clone, Debug)]
pub struct Desired {
    pub kind: Kind,
    pub namespace: String,
    pub name: String,
    pub replicas: u32,
    pub template: Template,
    /// Pods with another hash are replaced.
    pub hash: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A Deployment; `recreate` stops all old pods before it starts new ones.
    Deployment {
        recreate: bool,
    },
    StatefulSet,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Self::Deployment { .. } => "deployment",
            Self::StatefulSet => "statefulset",
        }
    }
}

/// The state of an existing pod. Terminating pods count until they are gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Existing {
    pub uid: String,
    pub hash: String,
    /// The ordinal of a StatefulSet's pod.
    pub ordinal: Option<u32>,
    pub ready: bool,
    pub ending: bool,
    /// The age order: older pods have smaller numbers.
    pub age: u64,
}

/// The next steps; more may follow when pods become ready or are gone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Steps {
    /// Pods to start, with the ordinal if they are a StatefulSet's.
    pub start: Vec<Option<u32>>,
    /// Uids of pods to stop.
    pub stop: Vec<String>,
}

/// The next steps towards `desired`.
pub fn next_steps(desired: &Desired, pods: &[Existing]) -> Steps {
    match desired.kind {
        Kind::Deployment { recreate } => deployment(desired, pods, recreate),
        Kind::StatefulSet => stateful_set(desired, pods),
    }
}

/// A new pod becomes ready before an old one stops: maxSurge 1, maxUnavailable 0.
fn deployment(desired: &Desired, pods: &[Existing], recreate: bool) -> Steps {
    const SURGE: usize = 1;
    let wanted = desired.replicas as usize;
    let live = || pods.iter().filter(|pod| !pod.ending);
    let (mut new, mut old): (Vec<_>, Vec<_>) = live().partition(|pod| pod.hash == desired.hash);
    let mut steps = Steps::default();

    // Too many new ones: stop unready ones first, then the youngest.
    new.sort_by_key(|pod| (!pod.ready, pod.age));
    for pod in new.drain(wanted.min(new.len())..) {
        steps.stop.push(pod.uid.clone());
    }
    let missing = wanted - new.len();
    if old.is_empty() {
        let blocked = recreate && pods.iter().any(|pod| pod.hash != desired.hash);
        steps.start = vec![None; if blocked { 0 } else { missing }];
        return steps;
    }
    if recreate {
        steps.stop.extend(old.iter().map(|pod| pod.uid.clone()));
        return steps;
    }
    let room = (wanted + SURGE).saturating_sub(new.len() + old.len());
    steps.start = vec![None; missing.min(room)];
    // Unready pods stop at once; others stop when enough pods are ready without them.
    old.sort_by_key(|pod| (pod.ready, std::cmp::Reverse(pod.age)));
    let ready = new.iter().chain(&old).filter(|pod| pod.ready).count();
    let mut spare = ready.saturating_sub(wanted);
    for pod in old {
        if pod.ready {
            if spare == 0 {
                break;
            }
            spare -= 1;
        }
        steps.stop.push(pod.uid.clone());
    }
    steps
}

/// In order: a pod starts when those before it are ready, and old ones are replaced in reverse
/// order.
fn stateful_set(desired: &Desired, pods: &[Existing]) -> Steps {
    let mut steps = Steps::default();
    let at = |ordinal: u32| pods.iter().find(|pod| pod.ordinal == Some(ordinal));
    for pod in pods.iter().filter(|pod| !pod.ending) {
        if pod
            .ordinal
            .is_none_or(|ordinal| ordinal >= desired.replicas)
        {
            steps.stop.push(pod.uid.clone());
        }
    }
    for ordinal in 0..desired.replicas {
        match at(ordinal) {
            None => {
                steps.start.push(Some(ordinal));
                return steps;
            }
            Some(pod) if pod.ending || (!pod.ready && pod.hash == desired.hash) => return steps,
            Some(_) => {}
        }
    }
    let outdated = (0..desired.replicas)
        .rev()
        .filter_map(at)
        .find(|pod| pod.hash != desired.hash);
    steps.stop.extend(outdated.map(|pod| pod.uid.clone()));
    steps
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use std::time::Duration;

    fn desired(kind: Kind, replicas: u32) -> Desired {
        Desired {
            kind,
            namespace: "shop".to_owned(),
            name: "web".to_owned(),
            replicas,
            template: Template {
                labels: BTreeMap::new(),
                annotations: BTreeMap::new(),
                service_account: "default".to_owned(),
                subdomain: None,
                init: Vec::new(),
                containers: Vec::new(),
                grace: Duration::ZERO,
            },
            hash: "new".to_owned(),
        }
    }

    fn rolling(replicas: u32) -> Desired {
        desired(Kind::Deployment { recreate: false }, replicas)
    }

    /// `"a new ready"`, in the order of their age; a numeric name is an ordinal.
    fn pods(texts: &[&str]) -> Vec<Existing> {
        let pod = |(age, text): (usize, &&str)| {
            let words: Vec<_> = text.split(' ').collect();
            Existing {
                uid: words[0].to_owned(),
                hash: words[1].to_owned(),
                ordinal: words[0].parse().ok(),
                ready: words[2] == "ready",
                ending: words[2] == "ending",
                age: age as u64,
            }
        };
        texts.iter().enumerate().map(pod).collect()
    }

    fn steps(start: usize, stop: &[&str]) -> Steps {
        Steps {
            start: vec![None; start],
            stop: stop.iter().map(|uid| uid.to_string()).collect(),
        }
    }

    #[test]
    fn a_new_deployment_starts_all_of_its_pods() {
        assert_eq!(next_steps(&rolling(3), &[]), steps(3, &[]));
    }

    #[test]
    fn scaling_down_stops_unready_pods_and_then_the_youngest() {
        let pods = pods(&["a new ready", "b new waiting", "c new ready", "d new ready"]);
        assert_eq!(next_steps(&rolling(2), &pods), steps(0, &["d", "b"]));
    }

    #[test]
    fn a_terminating_pod_is_replaced_at_once() {
        let pods = pods(&["a new ready", "b new ending"]);
        assert_eq!(next_steps(&rolling(2), &pods), steps(1, &[]));
    }

    #[test]
    fn a_change_starts_one_new_pod_before_it_stops_an_old_one() {
        let before = pods(&["a old ready", "b old ready"]);
        assert_eq!(next_steps(&rolling(2), &before), steps(1, &[]));
        let waiting = pods(&["a old ready", "b old ready", "c new waiting"]);
        assert_eq!(next_steps(&rolling(2), &waiting), steps(0, &[]));
        let ready = pods(&["a old ready", "b old ready", "c new ready"]);
        assert_eq!(next_steps(&rolling(2), &ready), steps(0, &["b"]));
        let last = pods(&["a old ready", "b old ending", "c new ready", "d new ready"]);
        assert_eq!(next_steps(&rolling(2), &last), steps(0, &["a"]));
        let done = pods(&["a old ending", "c new ready", "d new ready"]);
        assert_eq!(next_steps(&rolling(2), &done), steps(0, &[]));
    }

    #[test]
    fn an_old_pod_that_is_not_ready_stops_at_once() {
        let pods = pods(&["a old waiting"]);
        assert_eq!(next_steps(&rolling(1), &pods), steps(1, &["a"]));
    }

    #[test]
    fn recreate_waits_until_the_old_ones_are_gone() {
        let recreate = desired(Kind::Deployment { recreate: true }, 1);
        let before = pods(&["a old ready"]);
        assert_eq!(next_steps(&recreate, &before), steps(0, &["a"]));
        let ending = pods(&["a old ending"]);
        assert_eq!(next_steps(&recreate, &ending), steps(0, &[]));
        assert_eq!(next_steps(&recreate, &[]), steps(1, &[]));
    }

    #[test]
    fn a_stateful_set_starts_in_order_and_updates_in_reverse() {
        let set = desired(Kind::StatefulSet, 2);
        let start = |ordinal| Steps {
            start: vec![Some(ordinal)],
            stop: Vec::new(),
        };
        assert_eq!(next_steps(&set, &[]), start(0));
        assert_eq!(next_steps(&set, &pods(&["0 new waiting"])), steps(0, &[]));
        assert_eq!(next_steps(&set, &pods(&["0 new ready"])), start(1));
        let changed = pods(&["0 old ready", "1 old ready"]);
        assert_eq!(next_steps(&set, &changed), steps(0, &["1"]));
        let more = pods(&["0 new ready", "1 new ready", "2 new ready"]);
        assert_eq!(next_steps(&set, &more), steps(0, &["2"]));
    }
}
