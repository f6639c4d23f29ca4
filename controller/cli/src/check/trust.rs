//! The mesh's certificate authority, and the trust anchors that pods get from it.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::api::ListParams;
use kube::{Api, Client, Error};
use x509_parser::pem::Pem;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::api::{Installation, all};
use super::cluster::some;
use super::connected::connected;
use super::finding::{Found, Group, failure, ok, warning};
use super::names::{ANCHORS_CONFIG_MAP, ANCHORS_KEY, CONTROLLER, INJECTED_LABEL};
use super::pods::is_over;

/// When to warn that an authority expires: replacing it requires a rotation.
const SOON: SignedDuration = SignedDuration::from_hours(30 * 24);
const CERTIFICATE: &str = "tls.crt";
const KEY: &str = "tls.key";

pub async fn check(client: &Client, installed: &Installation) -> Group {
    let mut group = Group::new("trust");
    group.check("authority", of_secret(client, installed)).await;
    group.check("anchors", anchors(client, installed)).await;
    group.check("connected", connected(client, installed)).await;
    group
}

/// The certificates in a PEM text, in DER.
pub fn certificates(pem: &[u8]) -> Vec<Vec<u8>> {
    let found = Pem::iter_from_buffer(pem).filter_map(Result::ok);
    let certificates = found.filter(|pem| pem.label == "CERTIFICATE");
    certificates.map(|pem| pem.contents).collect()
}

/// The authority's certificates. `None`: the Secret does not exist, or may not be read.
pub async fn authority(
    client: &Client,
    installed: &Installation,
) -> Result<Option<Vec<Vec<u8>>>, Error> {
    let Some(name) = installed.flag("ca-secret") else {
        return Ok(None);
    };
    let api = Api::<Secret>::namespaced(client.clone(), &installed.namespace);
    match api.get_opt(name).await {
        Ok(secret) => {
            let data = secret.and_then(|secret| secret.data).unwrap_or_default();
            let pem = data.get(CERTIFICATE).map(|value| value.0.as_slice());
            Ok(pem.map(certificates).filter(|found| !found.is_empty()))
        }
        Err(Error::Api(status)) if status.code == 403 => Ok(None),
        Err(error) => Err(error),
    }
}

async fn of_secret(client: &Client, installed: &Installation) -> Result<Vec<Found>, Error> {
    let namespace = &installed.namespace;
    let Some(name) = installed.flag("ca-secret") else {
        return Ok(vec![warning(
            "the controller's authority is in no Secret: it is another one after each restart",
            "start the controller with --ca-secret, as the chart does",
        )]);
    };
    let api = Api::<Secret>::namespaced(client.clone(), namespace);
    let Some(secret) = api.get_opt(name).await? else {
        return Ok(vec![failure(
            format!(
                "the Secret {name} in {namespace} is not there: no controller that starts has the \
                 mesh's authority"
            ),
            format!(
                "a controller that runs puts it back within a minute. Else put it back from a \
                 backup, and kubectl -n {namespace} rollout restart deployment/{CONTROLLER}; \
                 without one: helm upgrade … --set identity.replaceLost=true makes another"
            ),
        )]);
    };
    let data = secret.data.unwrap_or_default();
    let (Some(certificate), Some(_)) = (data.get(CERTIFICATE), data.get(KEY)) else {
        return Ok(vec![failure(
            format!("the Secret {name} in {namespace} lacks {CERTIFICATE} or {KEY}"),
            "it is of the type kubernetes.io/tls: put both back",
        )]);
    };
    let trust_domain = installed.flag("trust-domain").unwrap_or("cluster.local");
    let found = certificates(&certificate.0);
    let found = found.first().map(|der| X509Certificate::from_der(der));
    let Some(Ok((_, certificate))) = found else {
        return Ok(vec![failure(
            format!("{CERTIFICATE} of the Secret {name} in {namespace} is no certificate in PEM"),
            "put the mesh's authority back into it",
        )]);
    };
    Ok(vec![judge(&certificate, trust_domain, Timestamp::now())])
}

fn judge(certificate: &X509Certificate, trust_domain: &str, now: Timestamp) -> Found {
    let expected = format!("spiffe://{trust_domain}");
    let names = certificate.subject_alternative_name().ok().flatten();
    let names = names.map_or(Vec::new(), |names| names.value.general_names.clone());
    let is_of_mesh = names
        .iter()
        .any(|name| matches!(name, GeneralName::URI(uri) if *uri == expected));
    if !is_of_mesh {
        return failure(
            format!(
                "the authority is not for the trust domain {trust_domain}: it lacks the SAN \
                 URI:{expected}"
            ),
            "put the mesh's authority back into its Secret, or set trustDomain in the chart's \
             values to what it is for",
        );
    }
    let expires = certificate.validity().not_after.timestamp();
    let Ok(expires) = Timestamp::from_second(expires) else {
        return ok("the authority does not expire");
    };
    let left = expires.duration_since(now);
    let date = expires.strftime("%F");
    if left.is_negative() {
        failure(
            format!("the authority has expired on {date}: no sidecar gets a certificate"),
            "put a new one into its Secret, and restart the controller and the workloads with \
             sidecars",
        )
    } else if left < SOON {
        warning(
            format!(
                "the authority expires on {date}, in {} days",
                left.as_hours() / 24
            ),
            "rotate it before: certificates that it issues end with it",
        )
    } else {
        ok(format!("the authority holds until {date}"))
    }
}

/// In every namespace with sidecars, pods mount the ConfigMap with the anchors and do not start
/// without it.
async fn anchors(client: &Client, installed: &Installation) -> Result<Vec<Found>, Error> {
    let injected = ListParams::default().labels(&format!("{INJECTED_LABEL}=true"));
    let pods = all(&Api::<Pod>::all(client.clone()), injected).await?;
    let namespaces: BTreeSet<String> = pods
        .into_iter()
        .filter(|pod| {
            let labels = pod.metadata.labels.as_ref();
            labels.is_some_and(|labels| labels.contains_key(INJECTED_LABEL))
        })
        // A namespace that is being deleted loses its ConfigMaps before its pods.
        .filter(|pod| !is_over(pod))
        .filter_map(|pod| pod.metadata.namespace)
        .collect();
    let named = ListParams::default().fields(&format!("metadata.name={ANCHORS_CONFIG_MAP}"));
    let maps = all(&Api::<ConfigMap>::all(client.clone()), named).await?;
    let authority = authority(client, installed).await?;
    let (mut missing, mut old) = (Vec::new(), Vec::new());
    for namespace in &namespaces {
        let map = maps.iter().find(|map| {
            map.metadata.namespace.as_ref() == Some(namespace)
                && map.metadata.name.as_deref() == Some(ANCHORS_CONFIG_MAP)
        });
        let Some(map) = map else {
            missing.push(namespace.clone());
            continue;
        };
        let pem = map.data.as_ref().and_then(|data| data.get(ANCHORS_KEY));
        let trusted = pem.map_or(Vec::new(), |pem| certificates(pem.as_bytes()));
        let is_current = match &authority {
            Some(authority) => authority.iter().any(|ca| trusted.contains(ca)),
            None => !trusted.is_empty(),
        };
        if !is_current {
            old.push(namespace.clone());
        }
    }
    let see = format!(
        "the controller puts it right within 30 s, or says why not: kubectl -n {} logs \
         deployment/{CONTROLLER}",
        installed.namespace
    );
    let mut found = Vec::new();
    if !missing.is_empty() {
        found.push(failure(
            format!(
                "the ConfigMap {ANCHORS_CONFIG_MAP} is missing, so that pods do not start, in {}",
                some(&missing)
            ),
            format!("a new pod there has it made; {see}"),
        ));
    }
    if !old.is_empty() {
        found.push(failure(
            format!(
                "the ConfigMap {ANCHORS_CONFIG_MAP} does not have the authority in force in {}",
                some(&old)
            ),
            see,
        ));
    }
    if found.is_empty() {
        found.push(ok(format!(
            "the trust anchors are in all {} namespaces with sidecars",
            namespaces.len()
        )));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, SanType};

    use super::super::finding::Level;
    use super::*;

    fn judged(uri: &str, now: &str) -> Found {
        let mut params = CertificateParams::default();
        let name = uri.try_into().expect("a URI");
        params.subject_alt_names = vec![SanType::URI(name)];
        params.not_before = rcgen::date_time_ymd(2026, 1, 1);
        params.not_after = rcgen::date_time_ymd(2027, 1, 1);
        let key = KeyPair::generate().expect("a key");
        let pem = params.self_signed(&key).expect("a certificate").pem();
        let found = certificates(pem.as_bytes());
        let (_, certificate) = X509Certificate::from_der(&found[0]).expect("a certificate");
        judge(&certificate, "cluster.local", now.parse().expect("a time"))
    }

    #[test]
    fn an_expiring_authority_is_reported_in_time() {
        let mesh = "spiffe://cluster.local";
        assert_eq!(judged(mesh, "2026-11-30T00:00:00Z").level(), Level::Ok);
        assert_eq!(judged(mesh, "2026-12-03T00:00:00Z").level(), Level::Warning);
        assert_eq!(judged(mesh, "2027-01-02T00:00:00Z").level(), Level::Failure);
    }

    #[test]
    fn an_authority_of_another_trust_domain_is_reported() {
        let found = judged("spiffe://other", "2026-06-01T00:00:00Z");
        assert_eq!(found.level(), Level::Failure);
        assert!(found.text().contains("cluster.local"));
    }
}
