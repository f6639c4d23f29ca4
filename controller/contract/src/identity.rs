//! How a proxy gets its certificate.

/// Asks for a certificate for the service account that `token` proves.
#[derive(Clone, PartialEq, ::prost::Message)]
pub struct CertifyRequest {
    /// PKCS #10 certificate signing request (RFC 2986), DER. Only its public key is used: the
    /// name in the certificate comes from the token.
    #[prost(bytes = "bytes", tag = "1")]
    pub csr_der: ::prost::bytes::Bytes,
    /// Service-account token with the audience [`crate::TOKEN_AUDIENCE`].
    #[prost(string, tag = "2")]
    pub token: String,
}

/// The certificate, and the trust anchors.
#[derive(Clone, PartialEq, ::prost::Message)]
pub struct CertifyResponse {
    /// Leaf first, DER. The leaf has one URI name:
    /// `spiffe://<trust-domain>/ns/<namespace>/sa/<service-account>`.
    #[prost(bytes = "bytes", repeated, tag = "1")]
    pub chain_der: Vec<::prost::bytes::Bytes>,
    /// Every trust anchor in force, DER.
    #[prost(bytes = "bytes", repeated, tag = "2")]
    pub trust_anchors_der: Vec<::prost::bytes::Bytes>,
    /// The controller's clock when it answered, in Unix seconds: a proxy whose clock differs logs a
    /// warning.
    #[prost(int64, tag = "3")]
    pub now_unix_seconds: i64,
    /// The authority that has issued the certificate: see [`crate::TrustAnchors::issuer`]. Empty
    /// from a controller without this field.
    #[prost(string, tag = "4")]
    pub issuer: String,
}
