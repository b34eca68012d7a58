//! YAML or JSON → [`KubeProxyConfiguration`], strictly first: what kube-proxy would not know, or what is there twice,
//! becomes a warning and is left out, and everything else still counts (spec 10.1).

use super::types::KubeProxyConfiguration;

const API_VERSION: &str = "kubeproxy.config.k8s.io/v1alpha1";
const KIND: &str = "KubeProxyConfiguration";
/// Where kubeadm's ConfigMap `kube-proxy` has the file.
const CONFIG_MAP_KEY: &str = "config.conf";

/// A file that cannot be kube-proxy's.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// Neither YAML nor JSON.
    #[error("not YAML: {0}")]
    Yaml(#[from] serde_yaml_ng::Error),
    /// Something else.
    #[error("apiVersion {found_version:?} kind {found_kind:?}: expected {API_VERSION} {KIND}")]
    Kind {
        /// What it says it is.
        found_version: String,
        /// What it says it is.
        found_kind: String,
    },
    /// A ConfigMap without the file.
    #[error("the ConfigMap has no data[{CONFIG_MAP_KEY:?}]")]
    ConfigMap,
    /// A value of another type than its field.
    #[error("{field}: {reason}")]
    Value {
        /// Its path.
        field: String,
        /// What is wrong.
        reason: serde_json::Error,
    },
}

/// The file, read.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Decoded {
    pub config: KubeProxyConfiguration,
    /// As the file has it.
    pub value: serde_json::Value,
    pub warnings: Vec<String>,
}

pub(super) fn decode(text: &str) -> Result<Decoded, DecodeError> {
    let (value, mut warnings) = parse(text)?;
    let word = |name: &str| value.get(name).and_then(|value| value.as_str()).unwrap_or_default().to_owned();
    match (word("apiVersion").as_str(), word("kind").as_str()) {
        (API_VERSION, KIND) => {}
        ("v1", "ConfigMap") => {
            let inner = value.pointer(&format!("/data/{CONFIG_MAP_KEY}")).and_then(|text| text.as_str());
            return decode(inner.ok_or(DecodeError::ConfigMap)?);
        }
        (version, kind) => {
            return Err(DecodeError::Kind { found_version: version.to_owned(), found_kind: kind.to_owned() });
        }
    }
    let mut path = serde_path_to_error::Track::new();
    let tracked = serde_path_to_error::Deserializer::new(&value, &mut path);
    // The question marks stand for the Options in between.
    let mut unknown = |path: serde_ignored::Path<'_>| {
        warnings.push(format!("unknown field {}: left out", path.to_string().replace("?.", "")));
    };
    let config = serde_ignored::deserialize(tracked, &mut unknown)
        .map_err(|reason| DecodeError::Value { field: path.path().to_string(), reason })?;
    Ok(Decoded { config, value, warnings })
}

/// The text as a value; of what is there twice the last counts, and a warning says so.
fn parse(text: &str) -> Result<(serde_json::Value, Vec<String>), DecodeError> {
    let value = serde_yaml_ng::from_str(text)?;
    let strict = serde_yaml_ng::from_str::<serde_yaml_ng::Value>(text);
    Ok((value, strict.err().map(|error| format!("{error}: the last one counts")).into_iter().collect()))
}
