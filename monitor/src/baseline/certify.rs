//! Whether a chain of certificates leads to a sealed root, and whether each of them may be where it is (RFC 5280, 6.1).

use std::collections::BTreeSet;

use sha2::{Digest as _, Sha256};
use x509_parser::error::X509Error;
use x509_parser::prelude::{GeneralName, ParsedExtension, X509Certificate};
use x509_parser::signature_algorithm::RsaSsaPssParams;

use super::identity::{SKEW, parse};
use super::object::Digest;
use crate::model::Time;

/// Extensions that are looked at here, or that say nothing of whom a certificate is for: the key's identifiers and usages, names,
/// policies, constraints, revocation lists.
const KNOWN: [&str; 13] = [
    "2.5.29.14",
    "2.5.29.15",
    "2.5.29.17",
    "2.5.29.18",
    "2.5.29.19",
    "2.5.29.30",
    "2.5.29.31",
    "2.5.29.32",
    "2.5.29.33",
    "2.5.29.35",
    "2.5.29.36",
    "2.5.29.37",
    "2.5.29.54",
];

/// Why one certificate does not issue another.
enum Refusal {
    /// It is not its issuer.
    Other,
    /// It is, and may not; or nobody here can say.
    Because(String),
}

/// What holds for a leaf by itself (for SPIFFE: X.509-SVID, 4 and 5).
pub(super) fn leaf(der: &[u8], now: Time) -> Result<(), String> {
    let leaf = parse(der)?;
    if leaf.is_ca() {
        return Err("an authority instead of a leaf".into());
    }
    if leaf.key_usage().ok().flatten().is_some_and(|usage| usage.value.key_cert_sign()) {
        return Err("may sign certificates, as a leaf must not".into());
    }
    lawful(&leaf, now)
}

/// Each certificate is signed by the next, and the last is a sealed root or signed by one.
pub(super) fn anchored(
    chain: &[Vec<u8>],
    sealed: &BTreeSet<Digest>,
    roots: &[Vec<u8>],
    now: Time,
) -> Result<(), String> {
    let is_root = |der: &[u8]| sealed.contains::<Digest>(&Sha256::digest(der).into());
    let leaf = parse(chain.first().ok_or("no certificate")?)?;
    let mut between = 0;
    let mut reason = None;
    for (at, der) in chain.iter().enumerate() {
        if at > 0 && is_root(der) {
            return Ok(());
        }
        let cert = parse(der)?;
        // A certificate that an authority issued to itself does not make the path longer.
        between += usize::from(at > 0 && cert.subject() != cert.issuer());
        for root in roots.iter().filter(|root| is_root(root)) {
            match issues(root, &cert, &leaf, between, now) {
                // A leaf that is itself the sealed root is no leaf.
                Ok(()) if root == der && at == 0 => return Err("a root instead of a leaf".into()),
                Ok(()) => return Ok(()),
                Err(Refusal::Because(why)) => reason = reason.or(Some(why)),
                Err(Refusal::Other) => {}
            }
        }
        match chain.get(at + 1).map(|next| issues(next, &cert, &leaf, between, now)) {
            Some(Err(Refusal::Because(why))) => return Err(why),
            Some(Err(Refusal::Other)) => {
                return Err(reason
                    .unwrap_or_else(|| "a certificate in the chain is not signed by the next one".into()));
            }
            Some(Ok(())) | None => {}
        }
    }
    Err(reason.unwrap_or_else(|| "chain does not end in a sealed root".into()))
}

/// Whether a certificate is signed by itself.
pub(super) fn is_self_signed(der: &[u8]) -> bool {
    parse(der).is_ok_and(|cert| signed_by(&cert, &cert).is_ok())
}

/// Whether an issuer signed a certificate, and may issue this leaf over that many authorities between them.
fn issues(
    issuer: &[u8],
    cert: &X509Certificate<'_>,
    leaf: &X509Certificate<'_>,
    between: usize,
    now: Time,
) -> Result<(), Refusal> {
    let issuer = parse(issuer).map_err(|_| Refusal::Other)?;
    signed_by(cert, &issuer)?;
    let refuse = |why: String| Err(Refusal::Because(format!("its issuer {why}")));
    if let Err(why) = lawful(&issuer, now) {
        return refuse(format!("is {why}"));
    }
    if issuer.key_usage().ok().flatten().is_some_and(|usage| !usage.value.key_cert_sign()) {
        return refuse("may not sign certificates".into());
    }
    let length = issuer.basic_constraints().ok().flatten().and_then(|basic| basic.value.path_len_constraint);
    if length.is_some_and(|length| between > usize::try_from(length).unwrap_or(usize::MAX)) {
        return refuse("may not have so many authorities below it".into());
    }
    permits(&issuer, leaf).or_else(refuse)
}

fn signed_by(cert: &X509Certificate<'_>, issuer: &X509Certificate<'_>) -> Result<(), Refusal> {
    if !issuer.is_ca() || issuer.subject() != cert.issuer() {
        return Err(Refusal::Other);
    }
    match cert.verify_signature(Some(issuer.public_key())) {
        Ok(()) => Ok(()),
        Err(error) if matches!(error, X509Error::SignatureUnsupportedAlgorithm) || has_odd_salt(cert) => {
            let oid = cert.signature_algorithm.algorithm.to_id_string();
            Err(Refusal::Because(format!("cannot check signatures of this algorithm ({oid})")))
        }
        Err(_) => Err(Refusal::Other),
    }
}

/// RSA-PSS is checked with a salt as long as the hash only, as TLS has it; openssl makes it longer unless it is told.
fn has_odd_salt(cert: &X509Certificate<'_>) -> bool {
    let algorithm = &cert.signature_algorithm;
    if algorithm.algorithm.to_id_string() != "1.2.840.113549.1.1.10" {
        return false;
    }
    let Some(Ok(pss)) = algorithm.parameters.as_ref().map(RsaSsaPssParams::try_from) else { return true };
    let hash = match pss.hash_algorithm_oid().to_id_string().as_str() {
        "2.16.840.1.101.3.4.2.1" => 32,
        "2.16.840.1.101.3.4.2.2" => 48,
        "2.16.840.1.101.3.4.2.3" => 64,
        _ => return true,
    };
    pss.salt_length() != hash
}

/// In time, and without what nobody here understands.
fn lawful(cert: &X509Certificate<'_>, now: Time) -> Result<(), String> {
    let at = |at: x509_parser::time::ASN1Time| Time(at.timestamp().saturating_mul(1_000_000_000));
    let (from, to) = (at(cert.validity().not_before), at(cert.validity().not_after));
    if to <= from {
        return Err("of no time: it ends before it begins".into());
    }
    if from.0 > now.0.saturating_add(SKEW) {
        return Err(format!("not valid before {from}"));
    }
    if to.0 < now.0.saturating_sub(SKEW) {
        return Err(format!("expired at {to}"));
    }
    let unknown = cert.extensions().iter().filter(|extension| extension.critical).find(|extension| {
        !KNOWN.contains(&extension.oid.to_id_string().as_str())
            || matches!(extension.parsed_extension(), ParsedExtension::ParseError { .. })
    });
    unknown.map_or(Ok(()), |extension| {
        Err(format!("with a critical extension that is not known ({})", extension.oid.to_id_string()))
    })
}

/// Whether the name constraints of an issuer permit the leaf's names.
fn permits(issuer: &X509Certificate<'_>, leaf: &X509Certificate<'_>) -> Result<(), String> {
    let Some(constraints) =
        issuer.name_constraints().map_err(|_| "has broken name constraints".to_owned())?
    else {
        return Ok(());
    };
    let names = leaf.subject_alternative_name().map_err(|_| "permits no broken names".to_owned())?;
    let names = names.map_or(&[] as &[_], |names| names.value.general_names.as_slice());
    let bases = |trees: &'_ Option<Vec<_>>| -> Vec<_> {
        trees
            .iter()
            .flatten()
            .map(|tree: &x509_parser::extensions::GeneralSubtree<'_>| tree.base.clone())
            .collect()
    };
    let permitted = bases(&constraints.value.permitted_subtrees);
    let excluded = bases(&constraints.value.excluded_subtrees);
    for base in permitted.iter().chain(&excluded) {
        let checked = matches!(base, GeneralName::URI(_) | GeneralName::DNSName(_));
        let same = |name: &GeneralName<'_>| std::mem::discriminant(name) == std::mem::discriminant(base);
        // A constraint on directories is one on the subject, too.
        let subject = matches!(base, GeneralName::DirectoryName(_)) && leaf.subject().iter().next().is_some();
        if constraints.critical && !checked && (subject || names.iter().any(same)) {
            return Err("has name constraints of a type that cannot be checked".into());
        }
    }
    for name in names {
        let (told, host): (&str, Option<&str>) = match name {
            GeneralName::DNSName(dns) => (dns, Some(dns)),
            GeneralName::URI(uri) => (uri, host_of(uri)),
            _ => continue,
        };
        let of_type = |base: &GeneralName<'_>| match (base, name) {
            (GeneralName::DNSName(base), GeneralName::DNSName(_)) => Some((*base).to_owned()),
            (GeneralName::URI(base), GeneralName::URI(_)) => Some((*base).to_owned()),
            _ => None,
        };
        let is_dns = matches!(name, GeneralName::DNSName(_));
        let within = |base: &String| host.is_some_and(|host| is_within(host, base, is_dns));
        let permitted: Vec<String> = permitted.iter().filter_map(of_type).collect();
        let excluded: Vec<String> = excluded.iter().filter_map(of_type).collect();
        // A URI without a host is of no constraint's, and refused by any.
        let lost = host.is_none() && !(permitted.is_empty() && excluded.is_empty());
        if lost || excluded.iter().any(within) || !(permitted.is_empty() || permitted.iter().any(within)) {
            return Err(format!("has name constraints that do not permit {told}"));
        }
    }
    Ok(())
}

/// The host of a URI.
fn host_of(uri: &str) -> Option<&str> {
    let authority = uri.split_once("://")?.1.split(['/', '?', '#']).next()?;
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let host = host.split_once(':').map_or(host, |(host, _)| host);
    Some(host).filter(|host| !host.is_empty())
}

/// RFC 5280, 4.2.1.10: below a constraint are a DNS name itself and those that end in it; of URIs that host alone, or with a
/// dot before it those that end in it alone.
fn is_within(host: &str, base: &str, is_dns: bool) -> bool {
    let (host, base) = (host.to_ascii_lowercase(), base.to_ascii_lowercase());
    if base.is_empty() || base.starts_with('.') {
        return host.ends_with(&base);
    }
    host == base || is_dns && host.strip_suffix(&base).is_some_and(|rest| rest.ends_with('.'))
}
