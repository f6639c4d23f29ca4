//! The client of the Kubernetes API server.

use std::time::Duration;

use kube::{Client, Config};

/// Read timeout of a connection. The API server ends a watch after 60 s, and every other response
/// is due at once.
const SILENCE: Duration = Duration::from_secs(75);
/// Connect timeout.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A client of the API server of the cluster that this process runs in, or of the kubeconfig's
/// current context.
pub async fn client() -> Result<Client, Error> {
    let mut config = Config::infer().await.map_err(Box::new)?;
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    config.read_timeout = Some(SILENCE);
    // Otherwise the timeout would include the time in which the connection was idle.
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
