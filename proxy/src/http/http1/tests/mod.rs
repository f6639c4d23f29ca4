//! All of HTTP/1 serving, between clients and apps that are plain sockets.

mod closing;
mod ends;
mod fixture;
mod hostile;
mod logins;
mod messages;
mod mirroring;
mod retrying;
mod shutdown;
