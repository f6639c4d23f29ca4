//! The way to the Kubernetes API server.

use std::time::Duration;

use kube::{Client, Config};

/// How long the API server may say nothing on a connection. A watch is ended by it after 60 s, and
/// every other answer is due at once.
const SILENCE: Duration = Duration::from_secs(75);
/// How long a connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A client for the API server of the cluster that this runs in, or of the current context of the
/// kubeconfig.
pub async fn client() -> Result<Client, Error> {
    let mut config = Config::infer().await.map_err(Box::new)?;
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    config.read_timeout = Some(SILENCE);
    // Else the time that a connection was not used would count as silence.
    config.reset_reader_on_write = true;
    Ok(Client::try_from(config)?)
}

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("found neither a pod's service account nor a kubeconfig: {0}")]
    Config(#[from] Box<kube::config::InferConfigError>),
    #[error("the connection to the API server can't be set up: {0}")]
    Client(#[from] kube::Error),
}
