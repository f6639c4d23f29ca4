//! The whole of HTTP/1 serving, between clients and apps that are sockets and bytes.

mod closing;
mod fixture;
mod hostile;
mod logins;
mod messages;
mod mirroring;
mod retrying;
mod shutdown;
