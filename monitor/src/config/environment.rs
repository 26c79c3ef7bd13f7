//! The standard `OTEL_EXPORTER_OTLP_*` variables, honoured where the file has no export list.
//!
//! Names and meanings: OpenTelemetry specification, "OTLP Exporter Configuration": the `_LOGS_` form of a variable
//! wins; the general HTTP endpoint gets `v1/logs` appended, the logs endpoint is used as it stands.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use super::resolve::{check_header, check_url};
use super::{Compression, ConfigError, Endpoint, Protocol, Tls};

type Variables<'a> = &'a dyn Fn(&str) -> Option<String>;

fn refuse(name: &str, message: impl AsRef<str>) -> ConfigError {
    ConfigError::new(format!("environment variable {name}"), None, message)
}

/// Name and value of the variable that applies, if one is set (empty counts as unset, as the specification says).
fn lookup(variables: Variables<'_>, name: &str) -> Option<(String, String)> {
    [format!("OTEL_EXPORTER_OTLP_LOGS_{name}"), format!("OTEL_EXPORTER_OTLP_{name}")]
        .into_iter()
        .find_map(|name| variables(&name).filter(|value| !value.is_empty()).map(|value| (name, value)))
}

/// The receiver the environment names; none if it names no endpoint.
pub(super) fn endpoints(variables: Variables<'_>) -> Result<Vec<Endpoint>, ConfigError> {
    let Some((name, mut endpoint)) = lookup(variables, "ENDPOINT") else { return Ok(Vec::new()) };
    check_url(&endpoint).map_err(|why| refuse(&name, why))?;
    let protocol = match lookup(variables, "PROTOCOL") {
        None => Protocol::Grpc,
        Some((name, word)) => match word.as_str() {
            "grpc" => Protocol::Grpc,
            "http/protobuf" => Protocol::HttpProtobuf,
            _ => {
                let why = format!("'{word}' is no valid value, expected one of grpc, http/protobuf");
                return Err(refuse(&name, why));
            }
        },
    };
    if protocol == Protocol::HttpProtobuf && name == "OTEL_EXPORTER_OTLP_ENDPOINT" {
        endpoint = format!("{}/v1/logs", endpoint.trim_end_matches('/'));
    }
    let file = |name: &str| lookup(variables, name).map(|(_, path)| PathBuf::from(path));
    let tls = Tls { ca: file("CERTIFICATE"), cert: file("CLIENT_CERTIFICATE"), key: file("CLIENT_KEY") };
    let compression = match lookup(variables, "COMPRESSION") {
        None => Compression::None,
        Some((name, word)) => match word.as_str() {
            "gzip" => Compression::Gzip,
            "none" => Compression::None,
            _ => {
                return Err(refuse(&name, format!("'{word}' is no valid value, expected one of none, gzip")));
            }
        },
    };
    let timeout = match lookup(variables, "TIMEOUT") {
        None => Duration::from_secs(10),
        Some((name, text)) => match text.parse::<u64>() {
            Ok(milliseconds) if milliseconds >= 100 => Duration::from_millis(milliseconds),
            _ => {
                let why = format!("'{text}' is no valid value, expected milliseconds, 100 at least");
                return Err(refuse(&name, why));
            }
        },
    };
    let headers = lookup(variables, "HEADERS")
        .map_or_else(|| Ok(BTreeMap::new()), |(name, text)| headers(&name, &text))?;
    Ok(vec![Endpoint { endpoint, protocol, headers, tls, compression, timeout }])
}

/// `key1=value1,key2=value2`, values percent-encoded (W3C Baggage without properties).
fn headers(variable: &str, text: &str) -> Result<BTreeMap<String, String>, ConfigError> {
    let mut all = BTreeMap::new();
    for pair in text.split(',').map(str::trim).filter(|pair| !pair.is_empty()) {
        // Neither name nor value is repeated in the error: without `=` there is no telling which is the credential.
        let (name, value) = pair
            .split_once('=')
            .ok_or_else(|| refuse(variable, "an entry has no '=', expected name=value,..."))?;
        let value = percent_decode(value.trim())
            .ok_or_else(|| refuse(variable, "a value is badly percent-encoded, expected %XX"))?;
        check_header(name.trim(), &value).map_err(|why| refuse(variable, why))?;
        all.insert(name.trim().to_owned(), value);
    }
    Ok(all)
}

fn percent_decode(text: &str) -> Option<String> {
    let (bytes, mut out, mut at) = (text.as_bytes(), Vec::with_capacity(text.len()), 0);
    while let Some(&byte) = bytes.get(at) {
        if byte == b'%' {
            let digits = bytes.get(at + 1..at + 3).filter(|two| two.iter().all(u8::is_ascii_hexdigit))?;
            let digits = std::str::from_utf8(digits).ok()?;
            out.push(u8::from_str_radix(digits, 16).ok()?);
            at += 3;
        } else {
            out.push(byte);
            at += 1;
        }
    }
    String::from_utf8(out).ok()
}

/// What the fuzzers give to the reader of the standard variables: a line each, `NAME=value`.
#[cfg(any(test, feature = "fuzz"))]
pub(super) fn fuzz(text: &str) {
    let variables = |name: &str| {
        let wanted = name.strip_prefix("OTEL_EXPORTER_OTLP_")?;
        text.lines()
            .find_map(|line| line.split_once('=').filter(|(name, _)| *name == wanted))
            .map(|(_, v)| v.to_owned())
    };
    if let Err(error) = endpoints(&variables) {
        assert!(!error.to_string().contains('\n'), "{error}");
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::PathBuf;
    use std::time::Duration;

    use super::endpoints;
    use crate::config::{Compression, Endpoint, Protocol, Tls};

    fn with(set: &[(&str, &str)]) -> Result<Vec<Endpoint>, String> {
        let set: BTreeMap<&str, &str> = set.iter().copied().collect();
        endpoints(&|name| set.get(name).map(|&value| value.to_owned())).map_err(|error| error.to_string())
    }

    #[test]
    fn no_endpoint_no_export() {
        assert_eq!(with(&[("OTEL_EXPORTER_OTLP_HEADERS", "a=b")]), Ok(Vec::new()));
        assert_eq!(with(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "")]), Ok(Vec::new()));
    }

    #[test]
    fn the_variables_mean_what_the_specification_says() {
        let found = with(&[
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "https://collector:4318/"),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
            ("OTEL_EXPORTER_OTLP_LOGS_PROTOCOL", "http/protobuf"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20x, tenant=7"),
            ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/ca.pem"),
            ("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE", "/c.pem"),
            ("OTEL_EXPORTER_OTLP_CLIENT_KEY", "/k.pem"),
            ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "2500"),
        ]);
        let expected = Endpoint {
            endpoint: "https://collector:4318/v1/logs".to_owned(),
            protocol: Protocol::HttpProtobuf,
            headers: [("authorization", "Bearer x"), ("tenant", "7")]
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .into(),
            tls: Tls {
                ca: Some(PathBuf::from("/ca.pem")),
                cert: Some(PathBuf::from("/c.pem")),
                key: Some(PathBuf::from("/k.pem")),
            },
            compression: Compression::Gzip,
            timeout: Duration::from_millis(2_500),
        };
        assert!(!format!("{expected:?}").contains("Bearer"));
        assert_eq!(found, Ok(vec![expected]));
    }

    #[test]
    fn refusals_name_the_variable_and_no_credential() {
        let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4317");
        assert_eq!(
            with(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "collector")]).unwrap_err(),
            "config: environment variable OTEL_EXPORTER_OTLP_ENDPOINT: 'collector' is no endpoint, expected \
             http://HOST:PORT or https://HOST:PORT"
        );
        assert_eq!(
            with(&[endpoint, ("OTEL_EXPORTER_OTLP_HEADERS", "secret")]).unwrap_err(),
            "config: environment variable OTEL_EXPORTER_OTLP_HEADERS: an entry has no '=', expected name=value,..."
        );
        assert_eq!(
            with(&[endpoint, ("OTEL_EXPORTER_OTLP_LOGS_TIMEOUT", "10s")]).unwrap_err(),
            "config: environment variable OTEL_EXPORTER_OTLP_LOGS_TIMEOUT: '10s' is no valid value, expected \
             milliseconds, 100 at least"
        );
    }
}
