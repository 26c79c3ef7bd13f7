//! Certificates for tests, signed with Ed25519.

use base64::Engine as _;
use ed25519_dalek::{Signer as _, SigningKey};

/// Seconds of an hour.
pub(crate) const HOUR: i64 = 3600;
/// The name of the workload, unless a test says otherwise.
pub(crate) const SPIFFE: &str = "spiffe://cluster.local/ns/default/sa/hello";

/// When the tests began: the same draft is the same certificate a second later.
static NOW: std::sync::LazyLock<i64> = std::sync::LazyLock::new(|| jiff::Timestamp::now().as_second());

const ED25519: &[u8] = &[0x30, 5, 6, 3, 0x2b, 0x65, 0x70];

/// A certificate to be made.
#[derive(Clone)]
pub(crate) struct Draft {
    /// Common name; none, if empty.
    pub(crate) subject: &'static str,
    /// Seed of its key.
    pub(crate) key: u8,
    /// `URI:` or `DNS:` and the name.
    pub(crate) sans: Vec<String>,
    /// An authority, with its path length if it has one.
    pub(crate) authority: Option<Option<u8>>,
    /// The octet of the key usage.
    pub(crate) usage: u8,
    /// Seconds from now.
    pub(crate) validity: (i64, i64),
    /// Object identifier after `2.5.29` or what else is given, whether it is critical, value.
    pub(crate) more: Vec<(Vec<u8>, bool, Vec<u8>)>,
    /// Signature algorithm.
    pub(crate) algorithm: Vec<u8>,
}

/// A certificate of an authority that signs leaves.
pub(crate) fn authority(subject: &'static str, key: u8) -> Draft {
    let validity = (-48 * HOUR, 24 * 365 * HOUR);
    Draft { subject, authority: Some(None), usage: 0x06, sans: Vec::new(), validity, ..leaf(key) }
}

/// A workload's certificate.
pub(crate) fn leaf(key: u8) -> Draft {
    Draft {
        subject: "",
        key,
        sans: vec![format!("URI:{SPIFFE}")],
        authority: None,
        usage: 0x80,
        validity: (-HOUR, 23 * HOUR),
        more: Vec::new(),
        algorithm: ED25519.to_vec(),
    }
}

impl Draft {
    /// In DER, signed by this one.
    pub(crate) fn by(&self, issuer: &Self) -> Vec<u8> {
        let name = |subject: &str| {
            let attribute = [tlv(6, &[0x55, 4, 3]), tlv(12, subject.as_bytes())].concat();
            tlv(0x30, &if subject.is_empty() { Vec::new() } else { tlv(0x31, &tlv(0x30, &attribute)) })
        };
        let time = |offset: i64| {
            let at = jiff::Timestamp::from_second(*NOW + offset).unwrap();
            tlv(0x18, at.strftime("%Y%m%d%H%M%SZ").to_string().as_bytes())
        };
        let public = |seed: u8| signing(seed).verifying_key().to_bytes();
        let spki = [ED25519.to_vec(), tlv(3, &[&[0][..], &public(self.key)].concat())].concat();
        let mut extensions = vec![(vec![0x55, 0x1d, 15], true, tlv(3, &[0, self.usage]))];
        let basic = self.authority.map_or_else(Vec::new, |length| {
            [vec![1, 1, 0xff], length.map_or_else(Vec::new, |length| tlv(2, &[length]))].concat()
        });
        extensions.push((vec![0x55, 0x1d, 19], true, tlv(0x30, &basic)));
        if !self.sans.is_empty() {
            extensions.push((vec![0x55, 0x1d, 17], true, tlv(0x30, &names(&self.sans))));
        }
        extensions.extend(self.more.iter().cloned());
        let extensions: Vec<u8> = extensions
            .iter()
            .flat_map(|(oid, critical, value)| {
                let critical = if *critical { vec![1, 1, 0xff] } else { Vec::new() };
                tlv(0x30, &[tlv(6, oid), critical, tlv(4, value)].concat())
            })
            .collect();
        let body = [
            tlv(0xa0, &[2, 1, 2]),
            tlv(2, &[self.key.max(1)]),
            self.algorithm.clone(),
            name(issuer.subject),
            tlv(0x30, &[time(self.validity.0), time(self.validity.1)].concat()),
            name(self.subject),
            tlv(0x30, &spki),
            tlv(0xa3, &tlv(0x30, &extensions)),
        ];
        let body = tlv(0x30, &body.concat());
        let signature = signing(issuer.key).sign(&body).to_bytes();
        let signature = tlv(3, &[&[0][..], &signature].concat());
        tlv(0x30, &[body, self.algorithm.clone(), signature].concat())
    }

    /// In PEM, signed by this one.
    pub(crate) fn pem_by(&self, issuer: &Self) -> String {
        pem("CERTIFICATE", &self.by(issuer))
    }

    /// In PEM, signed by itself.
    pub(crate) fn root(&self) -> String {
        self.pem_by(self)
    }

    /// Its private key in PEM.
    pub(crate) fn key_pem(&self) -> String {
        let seed = [&[2, 1, 0][..], ED25519, &tlv(4, &tlv(4, &[self.key; 32]))].concat();
        pem("PRIVATE KEY", &tlv(0x30, &seed))
    }
}

fn signing(seed: u8) -> SigningKey {
    SigningKey::from_bytes(&[seed; 32])
}

/// General names.
pub(crate) fn names(names: &[String]) -> Vec<u8> {
    let tagged = |name: &String| match name.split_once(':') {
        Some(("URI", uri)) => tlv(0x86, uri.as_bytes()),
        Some(("DNS", dns)) => tlv(0x82, dns.as_bytes()),
        Some(("email", mail)) => tlv(0x81, mail.as_bytes()),
        _ => panic!("{name}"),
    };
    names.iter().flat_map(tagged).collect()
}

/// A block of PEM.
pub(crate) fn pem(label: &str, der: &[u8]) -> String {
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let lines: Vec<&str> =
        text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}

/// Tag, length, value.
pub(crate) fn tlv(tag: u8, value: &[u8]) -> Vec<u8> {
    let length = value.len();
    let head = match u8::try_from(length) {
        Ok(short @ 0..0x80) => vec![tag, short],
        Ok(one) => vec![tag, 0x81, one],
        Err(_) => [&[tag, 0x82][..], &u16::try_from(length).unwrap().to_be_bytes()].concat(),
    };
    [head, value.to_vec()].concat()
}
