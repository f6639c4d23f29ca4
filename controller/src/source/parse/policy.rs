//! ReferenceGrant and XBackendTrafficPolicy: validated like their CRDs, and reduced.

use naru_contract::RetryBudget;

use super::problem::Invalid;
use super::{builtin, duration, gateway};
use crate::source::objects::*;

/// Defaults of GEP-3388.
const DEFAULT_PERCENT: i64 = 20;
const DEFAULT_INTERVAL: &str = "10s";
const DEFAULT_MIN_COUNT: i64 = 10;
const DEFAULT_MIN_INTERVAL: &str = "1s";
const MAX_MIN_COUNT: i64 = 1_000_000;
const GATEWAY_GROUP: &str = "gateway.networking.k8s.io";

pub fn reference_grant(object: gateway::ReferenceGrant) -> Result<ReferenceGrant, Invalid> {
    let from = object.spec.from.into_iter();
    let to = object.spec.to.into_iter();
    Ok(ReferenceGrant {
        name: builtin::name(&object.metadata)?,
        from: from
            .filter(|from| from.group == GATEWAY_GROUP)
            .filter_map(|from| {
                let mut kinds = RouteKind::ALL.into_iter();
                let kind = kinds.find(|kind| kind.as_str() == from.kind)?;
                Some((kind, from.namespace))
            })
            .collect(),
        to: to
            .filter(|to| builtin::is_core(&to.group) && to.kind == "Service")
            .map(|to| to.name.filter(|name| !name.is_empty()))
            .collect(),
    })
}

pub fn backend_traffic_policy(
    object: gateway::BackendTrafficPolicy,
) -> Result<BackendTrafficPolicy, Invalid> {
    let targets = object.spec.target_refs.into_iter();
    Ok(BackendTrafficPolicy {
        name: builtin::name(&object.metadata)?,
        created: builtin::created(&object.metadata),
        targets: targets
            .filter(|target| builtin::is_core(&target.group) && target.kind == "Service")
            .map(|target| target.name)
            .collect(),
        retry_budget: match object.spec.retry_constraint {
            None => None,
            Some(given) => Some(retry_budget(given)?),
        },
    })
}

fn retry_budget(given: gateway::RetryConstraint) -> Result<RetryBudget, Invalid> {
    let budget = given.budget.unwrap_or(gateway::Budget {
        percent: None,
        interval: None,
    });
    let rate = given.min_retry_rate.unwrap_or(gateway::Rate {
        count: None,
        interval: None,
    });
    let percent = budget.percent.unwrap_or(DEFAULT_PERCENT);
    let percent = (u32::try_from(percent)
        .ok()
        .filter(|percent| *percent <= 100))
    .ok_or_else(|| {
        Invalid::new(
            "spec.retryConstraint.budget.percent",
            format!("{percent} is not 0 to 100"),
        )
    })?;
    let count = rate.count.unwrap_or(DEFAULT_MIN_COUNT);
    let count =
        (u64::try_from(count).ok().filter(|_| count <= MAX_MIN_COUNT)).ok_or_else(|| {
            Invalid::new(
                "spec.retryConstraint.minRetryRate.count",
                format!("{count} is not 0 to {MAX_MIN_COUNT}"),
            )
        })?;
    let rate_interval_ms = interval(
        "spec.retryConstraint.minRetryRate.interval",
        rate.interval.as_deref().unwrap_or(DEFAULT_MIN_INTERVAL),
    )?;
    Ok(RetryBudget {
        percent,
        interval_ms: interval(
            "spec.retryConstraint.budget.interval",
            budget.interval.as_deref().unwrap_or(DEFAULT_INTERVAL),
        )?,
        // Thousandths of a retry, and thousandths of a second.
        min_retries_per_1000_s: count * 1_000 * 1_000 / rate_interval_ms,
    })
}

fn interval(field: &str, text: &str) -> Result<u64, Invalid> {
    (duration::milliseconds(text).filter(|ms| *ms > 0)).ok_or_else(|| {
        Invalid::new(
            field,
            format!("{text:?} is not a duration over 0, as 10s or 250ms"),
        )
    })
}
