//! Pod-level resources (`spec.resources`, Kubernetes 1.34). The API server rejects a pod whose
//! containers together request more, or are limited to more. In: the pod, and the sidecar's
//! configured resources. Out: as much of these as fits. The pod's own figures are unchanged.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, PodSpec, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::Resources;

/// Nano-units in one: the smallest amount that Kubernetes supports.
const NANO: i128 = 1_000_000_000;
/// Nano-units in a milli-unit, the unit of CPU.
const MILLI: i128 = 1_000_000;

/// The sidecar's resources as they fit into the pod's.
pub fn fit(spec: &PodSpec, asked: Resources) -> Resources {
    let Some(pod) = &spec.resources else {
        return asked;
    };
    let (cpu_request, cpu_limit) = one(spec, pod, "cpu", asked.cpu_request, asked.cpu_limit);
    let (memory_request, memory_limit) = one(
        spec,
        pod,
        "memory",
        asked.memory_request,
        asked.memory_limit,
    );
    Resources {
        cpu_request,
        cpu_limit,
        memory_request,
        memory_limit,
    }
}

/// Request and limit of one resource.
fn one(
    spec: &PodSpec,
    pod: &ResourceRequirements,
    name: &str,
    request: String,
    limit: String,
) -> (String, String) {
    let of_pod = |amounts: &Option<_>| amount(amounts.as_ref(), name);
    let (pod_request, pod_limit) = (of_pod(&pod.requests), of_pod(&pod.limits));
    let requested = requested(spec, name);
    if pod_request.is_none() && pod_limit.is_some() && requested == 0 {
        // The API server defaults the pod's request to its limit, unless a container has a request.
        return (String::new(), String::new());
    }
    let limit = match (pod_limit, nanos(&limit)) {
        (Some(most), Some(asked)) if asked > most => text(most, name),
        _ => limit,
    };
    let Some(all) = pod_request.or(pod_limit) else {
        return (request, limit);
    };
    let room = (all - requested).max(0);
    // A container's request defaults to its limit.
    let wanted = match nanos(&request) {
        Some(wanted) => wanted,
        None if limit.is_empty() => return (request, limit),
        None => nanos(&limit).unwrap_or(0),
    };
    let limited = nanos(&limit).unwrap_or(i128::MAX);
    match wanted > room.min(limited) {
        true => (text(room.min(limited), name), limit),
        false => (request, limit),
    }
}

/// The total request of the pod's own containers, as computed by the scheduler: of those that run
/// at the same time.
fn requested(spec: &PodSpec, name: &str) -> i128 {
    let of = |container: &Container| {
        let resources = container.resources.as_ref();
        let request = resources.and_then(|r| amount(r.requests.as_ref(), name));
        let limit = || resources.and_then(|r| amount(r.limits.as_ref(), name));
        request.or_else(limit).unwrap_or(0)
    };
    let (mut beside, mut most) = (0, 0);
    for init in spec.init_containers.iter().flatten() {
        match init.restart_policy.as_deref() == Some("Always") {
            true => beside += of(init),
            false => most = most.max(beside + of(init)),
        }
    }
    let containers: i128 = spec.containers.iter().map(of).sum();
    most.max(beside + containers)
}

fn amount(amounts: Option<&BTreeMap<String, Quantity>>, name: &str) -> Option<i128> {
    nanos(&amounts?.get(name)?.0)
}

/// An amount in the form that Kubernetes accepts: whole bytes, or thousandths of a CPU.
fn text(nanos: i128, name: &str) -> String {
    match name {
        "cpu" => format!("{}m", nanos / MILLI),
        _ => (nanos / NANO).to_string(),
    }
}

/// A quantity in billionths, rounded up. `None`: empty or invalid.
fn nanos(text: &str) -> Option<i128> {
    let end = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let (whole, part) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && part.is_empty() || whole.len() > 18 || part.contains('.') {
        return None;
    }
    // The unit as a fraction.
    let (times, by) = match unit {
        "n" => (1, NANO),
        "u" => (1, 1_000_000),
        "m" => (1, 1_000),
        "" => (1, 1),
        "Ki" => (1 << 10, 1),
        "Mi" => (1 << 20, 1),
        "Gi" => (1 << 30, 1),
        "Ti" => (1 << 40, 1),
        "Pi" => (1 << 50, 1),
        "Ei" => (1 << 60, 1),
        "k" => (1_000, 1),
        "M" => (1_000_000, 1),
        "G" => (NANO, 1),
        "T" => (1_000 * NANO, 1),
        "P" => (1_000_000 * NANO, 1),
        "E" => (NANO * NANO, 1),
        _ => {
            let power: i32 = unit.strip_prefix(['e', 'E'])?.parse().ok()?;
            let ten = |power: u32| 10_i128.checked_pow(power);
            match power {
                0..=18 => (ten(power.unsigned_abs())?, 1),
                -18..0 => (1, ten(power.unsigned_abs())?),
                _ => return None,
            }
        }
    };
    // Digits after the ninth are below a billionth of the unit.
    let part = &part[..part.len().min(9)];
    let digits = |text: &str| match text {
        "" => Some(0),
        _ => text.parse::<i128>().ok(),
    };
    let exponent = 9 - u32::try_from(part.len()).ok()?;
    let scaled = digits(whole)?.checked_mul(NANO)? + digits(part)? * 10_i128.pow(exponent);
    let product = scaled.checked_mul(times)?;
    Some(product.div_euclid(by) + i128::from(product.rem_euclid(by) > 0))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, from_value, json};

    use super::*;

    fn asked(requests: [&str; 2], limits: [&str; 2]) -> Resources {
        let [cpu_request, memory_request] = requests.map(str::to_owned);
        let [cpu_limit, memory_limit] = limits.map(str::to_owned);
        Resources {
            cpu_request,
            cpu_limit,
            memory_request,
            memory_limit,
        }
    }

    fn fitted(pod: Value, containers: Value, asked: Resources) -> Resources {
        let spec = json!({ "resources": pod, "containers": containers });
        fit(&from_value(spec).unwrap(), asked)
    }

    #[test]
    fn a_sidecar_gets_what_its_pod_has_left() {
        let usual = || asked(["20m", "32Mi"], ["", "256Mi"]);
        let web = |memory: &str| {
            let requests = json!({ "cpu": "100m", "memory": memory });
            json!([{ "name": "web", "resources": { "requests": requests } }])
        };
        let pod = json!({
            "requests": { "cpu": "110m", "memory": "64Mi" }, "limits": { "memory": "128Mi" },
        });
        // Some is left, none is left, and enough is left.
        let fitted_48 = fitted(pod.clone(), web("48Mi"), usual());
        assert_eq!(fitted_48, asked(["10m", "16777216"], ["", "134217728"]));
        let full = fitted(pod.clone(), web("64Mi"), usual());
        assert_eq!(full, asked(["10m", "0"], ["", "134217728"]));
        let much =
            json!({ "requests": { "cpu": "1", "memory": "1Gi" }, "limits": { "memory": "1Gi" } });
        assert_eq!(fitted(much, web("64Mi"), usual()), usual());
        // A limit without a request is a request.
        let without = asked(["", ""], ["", "256Mi"]);
        let full = fitted(pod, web("64Mi"), without);
        assert_eq!(full, asked(["", "0"], ["", "134217728"]));
        // A limit bounds the request if the pod has none, and serves as the request if nothing is
        // requested.
        let limited = json!({ "limits": { "memory": "80Mi" } });
        let fitted_16 = fitted(limited.clone(), web("64Mi"), usual());
        assert_eq!(fitted_16, asked(["20m", "16777216"], ["", "83886080"]));
        let alone = fitted(limited, json!([{ "name": "web" }]), usual());
        assert_eq!(alone, asked(["20m", ""], ["", ""]));
        // A pod without pod-level resources, and one without this resource.
        assert_eq!(fitted(Value::Null, web("64Mi"), usual()), usual());
        assert_eq!(fitted(json!({}), web("64Mi"), usual()), usual());
    }

    #[test]
    fn containers_that_run_in_sequence_share_their_requests() {
        let of = |cpu: &str| json!({ "requests": { "cpu": cpu } });
        let spec = json!({
            "initContainers": [
                { "name": "beside", "restartPolicy": "Always", "resources": of("10m") },
                { "name": "first", "resources": of("300m") },
                { "name": "second", "resources": { "limits": { "cpu": "0.2" } } },
            ],
            "containers": [{ "name": "a", "resources": of("100m") }, { "name": "b" }],
        });
        let spec: PodSpec = from_value(spec).unwrap();
        assert_eq!(requested(&spec, "cpu"), 310 * MILLI);
        assert_eq!(requested(&spec, "memory"), 0);
    }

    #[test]
    fn quantities_are_parsed_as_by_kubernetes() {
        for (text, expected) in [
            ("1", NANO),
            ("100m", 100 * MILLI),
            ("0.5", NANO / 2),
            (".5", NANO / 2),
            ("1.", NANO),
            ("1500u", 1_500_000),
            ("64Mi", (64 << 20) * NANO),
            ("1e3", 1_000 * NANO),
            ("2E-3", 2 * MILLI),
            ("1n", 1),
            ("0.1n", 1),
        ] {
            assert_eq!(nanos(text), Some(expected), "{text}");
        }
        for wrong in ["", "x", "1.2.3", "1Zi", "1e99", "9999999999999999999", "."] {
            assert_eq!(nanos(wrong), None, "{wrong}");
        }
    }
}
