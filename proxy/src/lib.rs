//! Naru's sidecar proxy.
//!
//! # The life of a connection
//!
//! Data workers carry connections, and one control thread keeps them supplied. Here a request of an app in one pod goes to an
//! app in another one, through the proxies of both.
//!
//! ```text
//!  pod of the client                                                       pod of the server
//! ┌────────────────────────────────────────────────┐                      ┌─────────────────────────────────────────┐
//! │ app ─▶ worker ─▶ outbound ─▶ connection        │                      │ worker ─▶ inbound ─▶ TLS handshake      │
//! │        accept    tables      detect            │                      │ accept    detect     identity           │
//! │                                │               │                      │              │ strict, permissive       │
//! │                    http1 │ http2 │ tcp         │                      │  http1 │ http2 │ tcp                    │
//! │                        route: decide           │                      │       the default rule                  │
//! │                        balance: pick           │   TCP, TLS 1.3       │       the app, and nobody else          │
//! │                        pool ─▶ upstream ───────┼──────────────────────┼▶      pool ─▶ upstream ─▶ app           │
//! └────────────────────────────────────────────────┘  ALPN: what it is    └─────────────────────────────────────────┘
//!        ▲ tables, certificate                                                   ▲ tables, certificate
//!      control ◀════════════════════════════ controller ═════════════════════▶ control
//! ```
//!
//! ## On the client's side
//!
//! 1. **The app connects** to an address that it got from DNS, mostly a ClusterIP. The rules that [`init`] has set redirect
//!    the connection to the outbound listener ([`socket`]).
//! 2. **[`worker`] accepts it**, asks the kernel for the original destination, and hands it to the worker with the fewest
//!    connections, which keeps it to its end: its pools and its tasks belong to one thread, so nothing on the way takes a
//!    lock.
//! 3. **[`outbound`] looks the destination up** in [`table`]. The first time, the address is unknown: the control thread
//!    subscribes to it and the connection waits for the controller's word, for a bounded time. From then on it is a look-up
//!    in a snapshot. What it finds is a Service with its routes, a single pod, or nothing of the mesh; the last is passed
//!    through as it is. Nothing that the client sends has a part in this.
//! 4. **[`connection`] finds out what it carries.** A declared protocol is taken at its word; else [`detect`] looks at the
//!    first bytes. A client that stays silent has an endpoint connected for it meanwhile: if the server is the first to
//!    speak, the connection is opaque.
//!    Where [`stream`] routes are in force (TLSRoutes, a TCPRoute), it is bytes in any case, and they say where to.
//! 5. **[`http1`], [`http2`] or [`tcp`] carries it.** The two HTTPs read one request after the other, or many at once; each
//!    is on its own from here. An opaque connection skips the next step; to another sidecar it goes in frames ([`tcp::frame`]), so that
//!    the next one can follow on the same upstream connection.
//! 6. **[`route`] decides** which rule takes the request and which of its backends gets it, and applies the rule's filters.
//!    The table is loaded anew for each request, so a changed route holds for the next one on a connection that has long been
//!    open. A rule that redirects, and the lack of one, is answered here, and so is a
//!    browser's preflight request. [`mirror`] sends copies to those whom the rule names.
//! 7. **[`balance`] picks an endpoint** among those of the backend: the better of two by latency and load, none that has been
//!    ejected.
//! 8. **A [`pool`] gives a connection** to that endpoint, or a stream of one: between sidecars [`mux`] carries the HTTP/1 of many
//!    clients on few connections, as h2 does with HTTP/2. Where there is none, [`upstream`] opens one: TCP to the pod's own address, then [`tls`] in
//!    which [`identity`] shows this pod's certificate and demands the very identity that the table names. Somebody else at
//!    that address is refused before a byte of the request is sent, and ejected. ALPN says what is inside.
//! 9. **The request goes out, and the response comes back**, each only as fast as the side that takes it. If the attempt
//!    fails, [`retry`] decides on another: always where nothing has reached an application, else as the route says and the
//!    [`budget`] allows, with a body that was kept for it up to a limit. [`deadlines`] has the route's time-outs.
//! 10. **It is counted**: by handles in [`metrics`] that were resolved with the table, and as a line of the [`access_log`]
//!     where that is on. What the proxy answered itself has a word from [`reason`].
//!
//! ## On the server's side
//!
//! 1. The connection arrives at the pod's own address and port; the rules redirect it to the inbound listener.
//! 2. **[`inbound`] finds out who it is from.** A ClientHello that offers one of our ALPN protocols is a peer's: the
//!    handshake ([`tls`]) proves its identity. Anything else is a client without a sidecar. It is let in as it is, or refused, as the
//!    pod's [`table`] says; the app's own TLS is let through untouched.
//! 3. What ALPN said is carried by the same [`http1`] (on each stream of [`mux`]), [`http2`] or [`tcp`], with one rule that leads to the app in this pod.
//!    The client's identity is the `client` of every series that is counted here.
//!
//! ## Beside it
//!
//! [`control`] runs on the main thread: a certificate from the controller and its renewal, and the
//! stream of tables. A push is decoded and checked whole before any of it is in force; what is
//! wrong is rejected by name, and the last good version stays. [`admin`] shows all of that.
//! [`memory`] bounds what peers can make the process hold. At the end, [`drain`] tells everybody
//! that there is to be no new work, and waits for those who are busy.
//!
//! [`init`] sets the redirect rules of a pod from inside, and [`cni`] from its node. With them the
//! app sees connections come from its clients ([`client_address`]), and requests tell it who calls
//! ([`forwarded`]).
#![forbid(unsafe_code)]

pub mod admin;
pub mod balance;
pub mod config;
pub mod connection;
pub mod control;
pub mod drain;
pub mod http;
pub mod identity;
pub mod inbound;
pub mod memory;
pub mod node;
pub mod observe;
pub mod opaque;
pub mod outbound;
pub mod probe;
pub mod route;
pub mod session;
pub mod socket;
pub mod table;
pub mod tls;
pub mod upstream;
pub mod wire;
pub mod workers;

#[cfg(test)]
mod testing;
