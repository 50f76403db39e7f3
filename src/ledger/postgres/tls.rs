//! What of a server's certificate is checked.
//!
//! Owns the meaning of `sslmode` and `sslrootcert` on top of rustls. Invariant: no mode checks less than its name promises.
//! Leaves DSNs and sessions to the files beside it.
//!
//! Two things differ from libpq: a name stands only in the certificate's subjectAltName (a common name is not
//! looked at), and a CA's certificate cannot serve as the server's own.

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{VerifierBuilderError, WebPkiServerVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What of the server's certificate is checked.
#[derive(Debug)]
pub(super) enum Trust {
    /// Nothing: the connection is encrypted, and its other end is not known.
    Anyone,
    /// That a root signed it, whatever host it names.
    Chain(RootCertStore),
    /// That a root signed it for the host of the DSN.
    Full(RootCertStore),
}

/// Why the TLS side of a connection, or its root certificates, cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// rustls has no protocol version to offer.
    #[error("TLS cannot be set up: {0}")]
    SetUp(#[source] Error),
    /// rustls does not take the root certificates.
    #[error("the root certificates cannot be used: {0}")]
    Roots(#[source] VerifierBuilderError),
    /// The file of `sslrootcert` cannot be read, or is not PEM.
    #[error("sslrootcert {}: {source}", .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: pem::Error,
    },
    /// A certificate in the file of `sslrootcert` cannot be a root.
    #[error("sslrootcert {}: {source}", .path.display())]
    Certificate {
        /// The file.
        path: PathBuf,
        /// The problem of the certificate.
        source: Error,
    },
    /// The file of `sslrootcert` has no certificate.
    #[error("sslrootcert {}: has no certificate in PEM form", .0.display())]
    Empty(PathBuf),
    /// None of the usual places has the system's roots.
    #[error("sslrootcert=system: this system has no bundle of root certificates")]
    NoBundle,
    /// The system's bundle cannot be read.
    #[error("sslrootcert=system: {}: {source}", .path.display())]
    Bundle {
        /// The bundle.
        path: PathBuf,
        /// What is wrong with it.
        source: pem::Error,
    },
    /// The system's bundle has no certificate.
    #[error("sslrootcert=system: {} has no certificate", .0.display())]
    EmptyBundle(PathBuf),
}

/// The TLS side of a connection.
pub(super) fn client_config(trust: Trust) -> Result<ClientConfig, TlsError> {
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(TlsError::SetUp)?;
    let verifier: Arc<dyn ServerCertVerifier> = match trust {
        Trust::Full(roots) => return Ok(builder.with_root_certificates(roots).with_no_client_auth()),
        Trust::Anyone => Arc::new(AnyCertificate(provider)),
        Trust::Chain(roots) => {
            let inner = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build();
            Arc::new(AnyName(inner.map_err(TlsError::Roots)?))
        }
    };
    Ok(builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth())
}

/// The certificates in the PEM file at `path`; an error if there is none.
pub(super) fn roots_of(path: &Path) -> Result<RootCertStore, TlsError> {
    let unreadable = |source| TlsError::File { path: path.to_owned(), source };
    let unusable = |source| TlsError::Certificate { path: path.to_owned(), source };
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(path).map_err(unreadable)? {
        roots.add(certificate.map_err(unreadable)?).map_err(unusable)?;
    }
    if roots.is_empty() { Err(TlsError::Empty(path.to_owned())) } else { Ok(roots) }
}

/// The roots that the system trusts (`sslrootcert=system`). Certificates that rustls cannot read are left out: most
/// bundles have some.
pub(super) fn system_roots() -> Result<RootCertStore, TlsError> {
    const BUNDLES: [&str; 5] = [
        "/etc/ssl/certs/ca-certificates.crt",
        "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
        "/etc/pki/tls/certs/ca-bundle.crt",
        "/etc/ssl/ca-bundle.pem",
        "/etc/ssl/cert.pem",
    ];
    // OpenSSL's variable goes first, as it does in libpq.
    let given = std::env::var_os("SSL_CERT_FILE").map(PathBuf::from);
    let path = given.or_else(|| BUNDLES.iter().map(PathBuf::from).find(|path| path.exists()));
    let path = path.ok_or(TlsError::NoBundle)?;
    let mut roots = RootCertStore::empty();
    let found =
        CertificateDer::pem_file_iter(&path).map_err(|source| TlsError::Bundle { path: path.clone(), source })?;
    roots.add_parsable_certificates(found.flatten());
    if roots.is_empty() { Err(TlsError::EmptyBundle(path)) } else { Ok(roots) }
}

/// Accepts every certificate. Signatures are checked all the same: the peer has the key of the certificate that it shows.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// Checks all but the name. rustls checks the name last, so an error about the name means that the chain is good.
#[derive(Debug)]
struct AnyName(Arc<WebPkiServerVerifier>);

impl ServerCertVerifier for AnyName {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        match self.0.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now) {
            Err(Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => Ok(ServerCertVerified::assertion()),
            verdict => verdict,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}
