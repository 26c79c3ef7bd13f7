//! The parts of Kubernetes objects that decide what lies in a pod's volumes. Everything else is passed over: an
//! unknown field of a newer API changes nothing here, or its volume source is unknown, which is said.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer};
use serde_json::Value;

/// `null` where a value could be left out, as Go's encoders print it.
fn or_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(d: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(d)?.unwrap_or_default())
}

/// Texts by key. A value that is left out is empty, as Go's decoders read it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Texts(BTreeMap<String, String>);

impl std::ops::Deref for Texts {
    type Target = BTreeMap<String, String>;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl<'de> Deserialize<'de> for Texts {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let texts = BTreeMap::<String, Option<String>>::deserialize(d)?;
        Ok(Self(texts.into_iter().map(|(key, text)| (key, text.unwrap_or_default())).collect()))
    }
}

macro_rules! objects {
    ($($(#[$meta:meta])* $name:ident { $($(#[$field_meta:meta])* $field:ident: $type:ty,)* })*) => {$(
        $(#[$meta])*
        #[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
        #[serde(rename_all = "camelCase")]
        pub struct $name {
            $($(#[$field_meta])* #[serde(default, deserialize_with = "or_default")] pub $field: $type,)*
        }
    )*};
}

objects! {
    /// `metadata`.
    Meta {
        /// Name.
        name: String,
        /// What its name begins with, where the API server gives it one.
        generate_name: String,
        /// Namespace.
        namespace: String,
        /// Labels.
        labels: Texts,
        /// Annotations.
        annotations: Texts,
    }

    /// A `ConfigMap`.
    ConfigMap {
        /// Name and namespace.
        metadata: Meta,
        /// Text by key.
        data: Texts,
        /// Base64 by key.
        binary_data: Texts,
        /// It never changes.
        immutable: bool,
    }

    /// A `Secret`.
    Secret {
        /// Name and namespace.
        metadata: Meta,
        /// What it is for: who may fill it.
        #[serde(rename = "type")]
        kind: String,
        /// Base64 by key.
        data: Texts,
        /// Text by key, which the API server writes over `data`.
        string_data: Texts,
        /// It never changes.
        immutable: bool,
    }

    /// A `ServiceAccount`.
    ServiceAccount {
        /// Name and namespace.
        metadata: Meta,
        /// Whether its pods get a token.
        automount_service_account_token: Option<bool>,
    }

    /// Anything that makes pods by `spec.template`.
    Templated {
        /// Name and namespace.
        metadata: Meta,
        /// What holds the template.
        spec: TemplatedSpec,
    }

    /// `spec` of what makes pods.
    TemplatedSpec {
        /// The template.
        template: PodTemplate,
        /// Of a `StatefulSet`: claims, each of which is a volume of its name, whatever the template has by that.
        volume_claim_templates: Vec<Templated>,
    }

    /// A `CronJob`.
    CronJob {
        /// Name and namespace.
        metadata: Meta,
        /// What holds the template.
        spec: CronJobSpec,
    }

    /// `spec` of a `CronJob`.
    CronJobSpec {
        /// The job.
        job_template: Templated,
    }

    /// A pod, or the template of one.
    PodTemplate {
        /// Name, namespace, labels.
        metadata: Meta,
        /// The pod.
        spec: PodSpec,
    }

    /// `spec` of a pod.
    PodSpec {
        /// Run one after the other, or (`restartPolicy: Always`) beside the others.
        init_containers: Vec<Container>,
        /// Run together.
        containers: Vec<Container>,
        /// Volumes.
        volumes: Vec<Volume>,
        /// Runs as.
        service_account_name: String,
        /// Its older name.
        service_account: String,
        /// Whether it gets a token.
        automount_service_account_token: Option<bool>,
        /// For all containers.
        security_context: PodSecurity,
        /// `false`: in a user namespace of its own.
        host_users: Option<bool>,
        /// Operating system.
        os: Os,
    }

    /// `spec.os`.
    Os {
        /// `linux` or `windows`.
        name: String,
    }

    /// `spec.securityContext`.
    PodSecurity {
        /// Group of volumes.
        fs_group: Option<i64>,
        /// User of containers that name none.
        run_as_user: Option<i64>,
    }

    /// `securityContext` of a container.
    Security {
        /// User.
        run_as_user: Option<i64>,
    }

    /// A container.
    Container {
        /// Name.
        name: String,
        /// Image.
        image: String,
        /// Environment.
        env: Vec<EnvVar>,
        /// What it sees of volumes.
        volume_mounts: Vec<VolumeMount>,
        /// User.
        security_context: Security,
        /// How much it may have.
        resources: Resources,
    }

    /// `resources` of a container: quantities by name.
    Resources {
        /// At most.
        limits: BTreeMap<String, Value>,
        /// At least.
        requests: BTreeMap<String, Value>,
    }

    /// A variable of the environment.
    EnvVar {
        /// Name.
        name: String,
        /// Value.
        value: Option<String>,
        /// Or where it comes from.
        value_from: Option<EnvVarSource>,
    }

    /// Where a variable comes from.
    EnvVarSource {
        /// A field of the pod.
        field_ref: Option<FieldRef>,
    }

    /// A mount.
    VolumeMount {
        /// Name of the volume.
        name: String,
        /// Path in the container.
        mount_path: String,
        /// Part of the volume.
        sub_path: String,
        /// The same with variables.
        sub_path_expr: String,
    }

    /// `configMap` of a volume.
    ConfigMapSource {
        /// Name of the `ConfigMap`.
        name: String,
        /// Which keys go where; all to their names, if empty.
        items: Vec<KeyToPath>,
        /// Mode of files.
        default_mode: Option<i32>,
        /// Need not be there.
        optional: bool,
    }

    /// `secret` of a volume.
    SecretSource {
        /// Name of the `Secret`.
        secret_name: String,
        /// As in [`ConfigMapSource`].
        items: Vec<KeyToPath>,
        /// Mode of files.
        default_mode: Option<i32>,
        /// Need not be there.
        optional: bool,
    }

    /// `projected` of a volume.
    ProjectedSource {
        /// Sources: kind of source → source. A later one writes over an earlier one.
        sources: Vec<BTreeMap<String, Value>>,
        /// Mode of files.
        default_mode: Option<i32>,
    }

    /// A `ConfigMap` or `Secret` in a projected volume.
    Projected {
        /// Its name.
        name: String,
        /// As in [`ConfigMapSource`].
        items: Vec<KeyToPath>,
        /// Need not be there.
        optional: bool,
    }

    /// A service account token in a projected volume.
    TokenProjection {
        /// Audience; the API server's own, if empty.
        audience: String,
        /// Path in the volume.
        path: String,
    }

    /// A trust bundle in a projected volume.
    BundleProjection {
        /// Path in the volume.
        path: String,
    }

    /// A certificate in a projected volume.
    CertificateProjection {
        /// Chain and key in one file.
        credential_bundle_path: String,
        /// The key.
        key_path: String,
        /// The chain.
        certificate_chain_path: String,
    }

    /// A key and where it goes.
    KeyToPath {
        /// Key.
        key: String,
        /// Path in the volume.
        path: String,
        /// Mode.
        mode: Option<i32>,
    }

    /// `downwardAPI` of a volume.
    DownwardApiSource {
        /// Files.
        items: Vec<DownwardApiFile>,
        /// Mode of files.
        default_mode: Option<i32>,
    }

    /// One file of it.
    DownwardApiFile {
        /// Path in the volume.
        path: String,
        /// A field of the pod.
        field_ref: Option<FieldRef>,
        /// A resource of a container.
        resource_field_ref: Option<ResourceRef>,
        /// Mode.
        mode: Option<i32>,
    }

    /// A field of a pod.
    FieldRef {
        /// Such as `metadata.labels['app']`.
        field_path: String,
    }

    /// A resource of a container.
    ResourceRef {
        /// The container.
        container_name: String,
        /// A quantity; 1, if there is none.
        divisor: Value,
        /// Such as `limits.cpu`.
        resource: String,
    }
}

/// A volume: its name, and beside it one key for the kind of its source.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Volume {
    /// Name.
    #[serde(default)]
    pub name: String,
    /// Kind of source → source.
    #[serde(flatten)]
    pub sources: BTreeMap<String, Value>,
}
