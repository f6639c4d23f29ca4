//! `naru-proxy wait`: blocks until the sidecar in the same pod carries traffic. For clusters
//! without native sidecars, where it delays the start of the pod's other containers.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::bail;
use clap::Args;

use crate::config::Span;
use crate::probe::ProbeContext;
use crate::probe::http::Get;

/// Interval between requests to the sidecar.
const INTERVAL: Duration = Duration::from_millis(100);
/// How long one answer may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);

/// Flags of `naru-proxy wait`.
#[derive(Args, Clone, Debug)]
pub struct WaitArgs {
    /// Address of the sidecar's admin port.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:15020")]
    admin: SocketAddr,
    /// How long to wait.
    #[arg(long, value_name = "TIME", default_value = "2m")]
    timeout: Span,
}

/// Returns once the sidecar is ready; fails if it is not ready in time.
pub fn run(args: WaitArgs) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let limit = Duration::from(args.timeout);
        match tokio::time::timeout(limit, ready(args.admin)).await {
            Ok(()) => Ok(()),
            Err(_) => bail!(
                "the sidecar is not ready after {}; GET http://{}/ready says why",
                args.timeout,
                args.admin
            ),
        }
    })
}

async fn ready(admin: SocketAddr) {
    let get = Get::new(admin.port(), "/ready");
    let context = ProbeContext {
        here: admin.ip(),
        user_agent: "naru-proxy",
        source: None,
        socket_mark: None,
    };
    loop {
        let answer = tokio::time::timeout(ANSWER_TIMEOUT, get.status(context)).await;
        if let Ok(Ok(200)) = answer {
            return;
        }
        tokio::time::sleep(INTERVAL).await;
    }
}
