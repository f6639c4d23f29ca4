//! Metrics of controllers and sidecars, read through the API server.

use http::Request;
use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use kube::{Api, Client, Error};

use super::api::{Installation, all};
use super::controller::SELECTOR;

/// The controller's default admin port.
const CONTROLLER_PORT: &str = "15014";
pub const SIDECAR_PORT: &str = "15020";

/// Metrics of one pod, in Prometheus' text format.
pub struct Metrics {
    pub pod: String,
    text: String,
}

impl Metrics {
    pub async fn of(
        client: &Client,
        namespace: &str,
        pod: &str,
        port: &str,
    ) -> Result<Self, Error> {
        let path = format!("/api/v1/namespaces/{namespace}/pods/{pod}:{port}/proxy/metrics");
        let request = Request::get(path)
            .body(Vec::new())
            .map_err(Error::HttpError)?;
        Ok(Self {
            pod: pod.to_owned(),
            text: client.request_text(request).await?,
        })
    }

    /// The series of a metric: its labels as they are written, and the value.
    pub fn series(&self, name: &str) -> impl Iterator<Item = (&str, f64)> {
        self.text.lines().filter_map(move |line| {
            let rest = line.strip_prefix(name)?;
            let (labels, value) = match rest.strip_prefix('{') {
                Some(rest) => rest.rsplit_once('}')?,
                None if rest.starts_with(' ') => ("", rest),
                None => return None,
            };
            Some((labels, value.trim().parse().ok()?))
        })
    }

    pub fn value(&self, name: &str) -> Option<f64> {
        self.series(name).next().map(|(_, value)| value)
    }

    /// The value of a label of the first series that is not 0.
    pub fn label(&self, name: &str, label: &str) -> Option<&str> {
        let mut series = self.series(name).filter(|(_, value)| *value != 0.0);
        series.find_map(|(labels, _)| value_of(labels, label))
    }
}

/// The value of one label.
pub fn value_of<'a>(labels: &'a str, label: &str) -> Option<&'a str> {
    let rest = labels.split_once(&format!("{label}=\""))?.1;
    Some(rest.split_once('"')?.0)
}

/// The metrics of every ready controller.
pub async fn of_controllers(
    client: &Client,
    installed: &Installation,
) -> Result<Vec<Metrics>, Error> {
    let admin = installed
        .flag("admin")
        .and_then(|admin| admin.rsplit_once(':'));
    let port = admin.map_or(CONTROLLER_PORT, |(_, port)| port);
    let namespace = &installed.namespace;
    let api = Api::<Pod>::namespaced(client.clone(), namespace);
    let pods = all(&api, ListParams::default().labels(SELECTOR)).await?;
    let mut found = Vec::new();
    for pod in pods.iter().filter(|pod| is_ready(pod)) {
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        found.push(Metrics::of(client, namespace, name, port).await?);
    }
    Ok(found)
}

fn is_ready(pod: &Pod) -> bool {
    let status = pod.status.as_ref();
    let conditions = status.and_then(|status| status.conditions.as_ref());
    let mut conditions = conditions.into_iter().flatten();
    pod.metadata.deletion_timestamp.is_none()
        && conditions.any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_are_matched_by_their_whole_name() {
        let metrics = Metrics {
            pod: String::new(),
            text: "# TYPE a gauge\n\
                a 1\n\
                a_b 2\n\
                a_info{issuer=\"x\",z=\"}\"} 1\n\
                a_info{issuer=\"y\"} 0\n"
                .to_owned(),
        };
        assert_eq!(metrics.value("a"), Some(1.0));
        assert_eq!(metrics.label("a_info", "issuer"), Some("x"));
        assert_eq!(metrics.series("a_info").count(), 2);
        assert_eq!(metrics.value("b"), None);
    }
}
