//! Records as OTLP log records: the one place that knows the names of contract §4.

use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::common::v1::{
    AnyValue, ArrayValue, InstrumentationScope, KeyValue, any_value,
};
use opentelemetry_proto::tonic::logs::v1::{LogRecord, ResourceLogs, ScopeLogs};
use opentelemetry_proto::tonic::resource::v1::Resource as ProtoResource;
use serde_json::Value;

use crate::model::{Record, Time};
use crate::text::one_line;

/// Who sends: the OTLP resource. It never holds a pod; the pods on records are those acted upon.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resource {
    /// `service.version`
    pub version: String,
    /// `service.instance.id`: differs for each agent.
    pub instance_id: String,
    /// `k8s.node.name`
    pub node: String,
    /// `k8s.cluster.uid`: uid of the kube-system namespace, where known.
    pub cluster_uid: Option<String>,
    /// `host.id`: the node's machine-id, where known.
    pub host_id: Option<String>,
}

/// Where fields of a record go whose name is not `meshseal.<path in the JSON>`. Facts: OpenTelemetry semantic
/// conventions 1.44; OTel's `process.pid` is the kernel's tgid, and the kernel's pid is its `thread.id`.
const NAMES: &[(&str, &str)] = &[
    ("uid", "log.record.uid"),
    ("object.path", "file.path"),
    ("actor.tgid", "process.pid"),
    ("actor.pid", "thread.id"),
    ("actor.ppid", "process.parent_pid"),
    ("actor.uid", "process.real_user.id"),
    ("actor.exe", "process.executable.path"),
    ("actor.cmdline", "process.command_line"),
    ("actor.start_time", "process.creation.time"),
    ("actor.cgroup", "process.linux.cgroup"),
    ("target.namespace", "k8s.namespace.name"),
    ("target.pod", "k8s.pod.name"),
    ("target.pod_uid", "k8s.pod.uid"),
    ("target.container", "k8s.container.name"),
    ("target.image", "container.image.name"),
    ("target.image_digest", "container.image.id"),
];

/// What controls the target, by its kind.
const OWNERS: &[(&str, &str)] = &[
    ("Deployment", "k8s.deployment.name"),
    ("ReplicaSet", "k8s.replicaset.name"),
    ("StatefulSet", "k8s.statefulset.name"),
    ("DaemonSet", "k8s.daemonset.name"),
    ("CronJob", "k8s.cronjob.name"),
    ("Job", "k8s.job.name"),
];

/// Fields that are also told by a name of OpenTelemetry or ECS.
const ALSO: &[(&str, &str)] = &[("actual.sha256", "file.hash.sha256"), ("new.sha256", "file.hash.sha256")];

/// The log record of a record, observed now.
#[must_use]
pub fn log_record(record: &Record, observed: Time) -> LogRecord {
    let event_name = format!("meshseal.{}", record.body.kind());
    let mut attributes = vec![attribute("otel.event.name", string(event_name.clone()))];
    if let Ok(Value::Object(fields)) = serde_json::to_value(record) {
        let owner = |key: &str| fields.get("target")?.get("owner")?.get(key)?.as_str();
        let named = owner("kind").and_then(|kind| OWNERS.iter().find(|(known, _)| *known == kind));
        if let (Some((_, key)), Some(name)) = (named, owner("name")) {
            attributes.push(attribute(key, string(name.to_owned())));
        }
        for (name, value) in fields {
            // The time is the log record's own.
            if name != "time" {
                flatten(&name, value, &mut attributes);
            }
        }
    }
    LogRecord {
        time_unix_nano: nanos(record.time),
        observed_time_unix_nano: nanos(observed),
        severity_number: record.severity.otlp(),
        severity_text: record.severity.as_str().to_owned(),
        // A sentence holds names and command lines as others chose them: they must not look like another line of a log.
        body: Some(string(one_line(&record.body.sentence()))),
        attributes,
        event_name,
        ..LogRecord::default()
    }
}

/// One request for these log records.
#[must_use]
pub fn request(resource: &Resource, log_records: Vec<LogRecord>) -> ExportLogsServiceRequest {
    let known = [
        ("service.name", Some("meshseal")),
        ("service.version", Some(resource.version.as_str())),
        ("service.instance.id", Some(resource.instance_id.as_str())),
        ("k8s.node.name", Some(resource.node.as_str())),
        ("k8s.cluster.uid", resource.cluster_uid.as_deref()),
        ("host.id", resource.host_id.as_deref()),
    ];
    let attributes = known
        .into_iter()
        .filter_map(|(key, value)| Some(attribute(key, string(value?.to_owned()))))
        .collect();
    let scope = InstrumentationScope {
        name: "meshseal".to_owned(),
        version: resource.version.clone(),
        ..InstrumentationScope::default()
    };
    ExportLogsServiceRequest {
        resource_logs: vec![ResourceLogs {
            resource: Some(ProtoResource { attributes, ..ProtoResource::default() }),
            scope_logs: vec![ScopeLogs { scope: Some(scope), log_records, schema_url: String::new() }],
            schema_url: String::new(),
        }],
    }
}

fn flatten(path: &str, value: Value, out: &mut Vec<KeyValue>) {
    let value = match value {
        Value::Null => return,
        Value::Object(fields) => {
            for (name, value) in fields {
                flatten(&format!("{path}.{name}"), value, out);
            }
            return;
        }
        other => any(other),
    };
    if let Some((_, name)) = ALSO.iter().find(|(field, _)| *field == path) {
        out.push(attribute(name, value.clone()));
    }
    let name = NAMES.iter().find(|(field, _)| *field == path);
    let name = name.map_or_else(|| format!("meshseal.{path}"), |(_, name)| (*name).to_owned());
    out.push(attribute(&name, value));
}

fn any(value: Value) -> AnyValue {
    let value = match value {
        Value::Bool(b) => any_value::Value::BoolValue(b),
        Value::Number(n) => n
            .as_i64()
            .map_or_else(|| any_value::Value::StringValue(n.to_string()), any_value::Value::IntValue),
        Value::String(s) => any_value::Value::StringValue(s),
        Value::Array(values) => {
            any_value::Value::ArrayValue(ArrayValue { values: values.into_iter().map(any).collect() })
        }
        other => any_value::Value::StringValue(other.to_string()),
    };
    AnyValue { value: Some(value) }
}

fn string(text: String) -> AnyValue {
    AnyValue { value: Some(any_value::Value::StringValue(text)) }
}

fn attribute(key: &str, value: AnyValue) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Some(value), ..KeyValue::default() }
}

fn nanos(time: Time) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use opentelemetry_proto::tonic::common::v1::{AnyValue, any_value::Value as Proto};

    use super::{Resource, log_record, request};
    use crate::model::{Record, Time};

    fn plain(value: &AnyValue) -> String {
        match value.value.as_ref().unwrap() {
            Proto::StringValue(s) => format!("{s:?}"),
            Proto::IntValue(i) => i.to_string(),
            Proto::ArrayValue(a) => {
                format!("[{}]", a.values.iter().map(plain).collect::<Vec<_>>().join(", "))
            }
            other => format!("{other:?}"),
        }
    }

    #[test]
    fn a_violation_as_the_contract_says() {
        let record: Record = serde_json::from_value(serde_json::json!({
            "seq": 7, "time": "2026-01-02T03:04:05.000000006Z", "node": "n1", "severity": "high", "uid": "01ULID",
            "coverage": "reduced", "blind_to": ["mounts"], "kind": "violation.opened", "violation": "content",
            "object": {"id": "o", "path": "/a\\xff", "class": "sealed", "baseline": "b", "revision": 3},
            "operation": "write", "operations": ["open", "write"], "sensor": "lsm", "count": 2,
            "first_time": "2026-01-02T03:04:05Z", "last_time": "2026-01-02T03:04:05Z", "fingerprint": "f",
            "action": "observed", "expected": {"sha256": "aa"}, "actual": {"sha256": "bb", "mode": "0644"},
            "actor": {"pid": 11, "tgid": 10, "ppid": 1, "uid": 0, "comm": "sed", "exe": "/bin/sed", "cmdline": "sed -i",
                "start_time": null, "cgroup": "/x", "mount_ns": 5, "pod": {"uid": "actor-pod", "name": "evil"},
                "container": {"id": "cid"}},
            "target": {"namespace": "ns", "pod": "p", "pod_uid": "pu", "container": "istio-proxy",
                "service_account": "sa", "mesh": "istio", "image": "img", "image_digest": "r@sha256:00",
                "owner": {"kind": "Deployment", "name": "d"},
                "source": {"kind": "ConfigMap", "namespace": "ns", "name": "ca", "uid": null, "resourceVersion": "9"}},
            "attack": ["T1565.001"],
        }))
        .unwrap();
        let log = log_record(&record, Time(9));
        assert_eq!((log.time_unix_nano, log.observed_time_unix_nano), (1_767_323_045_000_000_006, 9));
        assert_eq!((log.severity_number, log.severity_text.as_str()), (17, "high"));
        assert_eq!(log.event_name, "meshseal.violation.opened");
        assert_eq!(log.body.as_ref().map(plain), Some(format!("{:?}", record.body.sentence())));
        let got: BTreeMap<_, _> =
            log.attributes.iter().map(|a| (a.key.as_str(), plain(a.value.as_ref().unwrap()))).collect();
        assert_eq!(got.len(), log.attributes.len());
        let want = [
            ("container.image.id", "\"r@sha256:00\""),
            ("container.image.name", "\"img\""),
            ("file.hash.sha256", "\"bb\""),
            ("file.path", "\"/a\\\\xff\""),
            ("k8s.container.name", "\"istio-proxy\""),
            ("k8s.deployment.name", "\"d\""),
            ("k8s.namespace.name", "\"ns\""),
            ("k8s.pod.name", "\"p\""),
            ("k8s.pod.uid", "\"pu\""),
            ("log.record.uid", "\"01ULID\""),
            ("meshseal.action", "\"observed\""),
            ("meshseal.actor.comm", "\"sed\""),
            ("meshseal.actor.container.id", "\"cid\""),
            ("meshseal.actor.mount_ns", "5"),
            ("meshseal.actor.pod.name", "\"evil\""),
            ("meshseal.actor.pod.uid", "\"actor-pod\""),
            ("meshseal.actual.mode", "\"0644\""),
            ("meshseal.actual.sha256", "\"bb\""),
            ("meshseal.attack", "[\"T1565.001\"]"),
            ("meshseal.blind_to", "[\"mounts\"]"),
            ("meshseal.count", "2"),
            ("meshseal.coverage", "\"reduced\""),
            ("meshseal.expected.sha256", "\"aa\""),
            ("meshseal.fingerprint", "\"f\""),
            ("meshseal.first_time", "\"2026-01-02T03:04:05.000000000Z\""),
            ("meshseal.kind", "\"violation.opened\""),
            ("meshseal.last_time", "\"2026-01-02T03:04:05.000000000Z\""),
            ("meshseal.node", "\"n1\""),
            ("meshseal.object.baseline", "\"b\""),
            ("meshseal.object.class", "\"sealed\""),
            ("meshseal.object.id", "\"o\""),
            ("meshseal.object.revision", "3"),
            ("meshseal.operation", "\"write\""),
            ("meshseal.operations", "[\"open\", \"write\"]"),
            ("meshseal.sensor", "\"lsm\""),
            ("meshseal.seq", "7"),
            ("meshseal.severity", "\"high\""),
            ("meshseal.target.mesh", "\"istio\""),
            ("meshseal.target.owner.kind", "\"Deployment\""),
            ("meshseal.target.owner.name", "\"d\""),
            ("meshseal.target.service_account", "\"sa\""),
            ("meshseal.target.source.kind", "\"ConfigMap\""),
            ("meshseal.target.source.name", "\"ca\""),
            ("meshseal.target.source.namespace", "\"ns\""),
            ("meshseal.target.source.resourceVersion", "\"9\""),
            ("meshseal.violation", "\"content\""),
            ("otel.event.name", "\"meshseal.violation.opened\""),
            ("process.command_line", "\"sed -i\""),
            ("process.executable.path", "\"/bin/sed\""),
            ("process.linux.cgroup", "\"/x\""),
            ("process.parent_pid", "1"),
            ("process.pid", "10"),
            ("process.real_user.id", "0"),
            ("thread.id", "11"),
        ];
        assert_eq!(got, want.map(|(k, v)| (k, v.to_owned())).into_iter().collect());
    }

    #[test]
    fn the_resource_tells_the_node_and_no_pod() {
        let resource = Resource {
            version: "1".to_owned(),
            instance_id: "i".to_owned(),
            node: "n".to_owned(),
            cluster_uid: None,
            host_id: Some("h".to_owned()),
        };
        let request = request(&resource, Vec::new());
        let got: Vec<_> = request.resource_logs[0]
            .resource
            .as_ref()
            .unwrap()
            .attributes
            .iter()
            .map(|a| format!("{}={}", a.key, plain(a.value.as_ref().unwrap())))
            .collect();
        assert_eq!(
            got,
            [
                "service.name=\"meshseal\"",
                "service.version=\"1\"",
                "service.instance.id=\"i\"",
                "k8s.node.name=\"n\"",
                "host.id=\"h\"",
            ]
        );
    }
}
