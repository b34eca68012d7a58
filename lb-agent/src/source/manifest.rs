//! What does the text of a manifest file say? Text in, objects and refusals out; called by [`super::file`].
//! A file is a row of documents, and nothing that is wrong in one of them hides another: YAML is cut at its `---`
//! lines before anything is parsed, JSON at its values, and a JSON list at its items.

use std::{
    borrow::Cow,
    hash::{DefaultHasher, Hash, Hasher},
};

use k8s_openapi::api::{
    core::v1::{Endpoints, Node, Service},
    discovery::v1::EndpointSlice,
    networking::v1::ServiceCIDR,
};
use serde::{Deserialize, Deserializer, de::DeserializeOwned};
use serde_json::{Value, value::RawValue};

use super::{Kind, Object, ObjectRef, Refusal};

/// What a manifest may hold: `apiVersion`, `kind`, ours.
const KINDS: [(&str, &str, Kind); 5] = [
    ("v1", "Service", Kind::Service),
    ("discovery.k8s.io/v1", "EndpointSlice", Kind::EndpointSlice),
    ("v1", "Endpoints", Kind::Endpoints),
    ("v1", "Node", Kind::Node),
    ("networking.k8s.io/v1", "ServiceCIDR", Kind::ServiceCidr),
];

/// How a file is written; its name says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `.yaml` or `.yml`, documents separated by `---`.
    Yaml,
    /// `.json`, one value or several in a row.
    Json,
}

/// A stretch of a file that is parsed by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document<'a> {
    format: Format,
    /// Its text.
    pub text: &'a str,
    /// Where it is, for refusals: `document 3 (line 41)`.
    place: String,
    /// `apiVersion` and `kind` of items that may leave them out, as those of a `ServiceList` do.
    item_type: Option<(String, String)>,
}

/// What a document says.
#[derive(Debug, Default, PartialEq)]
pub struct Parsed {
    /// The objects, those that are not watched ([`Object::is_watched`]) left out.
    pub objects: Vec<Object>,
    /// What is wrong.
    pub refusals: Vec<Refusal>,
    /// Objects that are named but cannot be read.
    pub unreadable: Vec<ObjectRef>,
    /// True if something cannot be read that may be any object.
    pub unnamed: bool,
}

impl Document<'_> {
    /// Hash of everything the parsed document depends on.
    pub fn text_hash(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        (self.text, &self.item_type).hash(&mut hasher);
        hasher.finish()
    }

    /// Reads the document. `origin` is the file's path.
    pub fn parse(&self, origin: &str) -> Parsed {
        let mut parsed = Parsed::default();
        match self.parse_quickly() {
            Some(object) => parsed.accept(object, origin),
            None => self.parse_thoroughly(origin, &mut parsed),
        }
        parsed
    }

    /// Reads text straight into the object's type: no detour, but no explanation either. None: not one well-formed
    /// object of a supported kind whose type stands where it usually does.
    fn parse_quickly(&self) -> Option<Object> {
        match self.format {
            Format::Yaml => {
                let kind = sniff_kind(self.text)?;
                read(kind, serde_yaml_ng::Deserializer::from_str(self.text)).ok()
            }
            Format::Json => {
                let header: JsonHeader<'_> = serde_json::from_str(self.text).ok()?;
                let item_type = self.item_type.as_ref();
                let api_version = header.api_version.as_deref().or(item_type.map(|known| known.0.as_str()))?;
                let kind = kind_of(
                    api_version,
                    header.kind.as_deref().or(item_type.map(|known| known.1.as_str()))?,
                )?;
                read(kind, &mut serde_json::Deserializer::from_str(self.text)).ok()
            }
        }
    }

    fn parse_thoroughly(&self, origin: &str, parsed: &mut Parsed) {
        let context = Context { origin, place: &self.place };
        let item_type =
            self.item_type.as_ref().map(|(api_version, kind)| (api_version.as_str(), kind.as_str()));
        match self.value() {
            Ok(value) => parsed.read_value(value, item_type, &context),
            Err(reason) => {
                parsed.unnamed = true;
                parsed.refusals.push(context.refusal(String::new(), reason));
            }
        }
    }

    fn value(&self) -> Result<Value, String> {
        if self.format == Format::Json {
            return serde_json::from_str(self.text).map_err(|error| format!("not JSON: {error}"));
        }
        let not_yaml = |error: serde_yaml_ng::Error| format!("not YAML: {error}");
        let mut value: serde_yaml_ng::Value = serde_yaml_ng::from_str(self.text).map_err(not_yaml)?;
        value.apply_merge().map_err(not_yaml)?;
        serde_json::to_value(value).map_err(|error| format!("not an object as JSON can hold it: {error}"))
    }
}

/// Cuts a file into its documents; empty ones are left out. What follows a JSON syntax error cannot be told apart:
/// it comes as one document, which then says what is wrong.
pub fn documents(format: Format, text: &str) -> Vec<Document<'_>> {
    match format {
        Format::Yaml => yaml_documents(text),
        Format::Json => json_documents(text),
    }
}

/// YAML forbids `---` at the start of a line anywhere but between documents, block scalars included
/// (YAML 1.2.2, 9.1.2), so cutting needs no parser.
fn yaml_documents(text: &str) -> Vec<Document<'_>> {
    let mut documents = Vec::new();
    let (mut start, mut start_line, mut offset) = (0, 1, 0);
    for (line_number, line) in text.split_inclusive('\n').enumerate() {
        if offset > 0 && is_separator(line) {
            push_yaml(&mut documents, &text[start..offset], start_line);
            (start, start_line) = (offset, line_number + 1);
        }
        offset += line.len();
    }
    push_yaml(&mut documents, &text[start..], start_line);
    documents
}

fn is_separator(line: &str) -> bool {
    line.strip_prefix("---").is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']))
}

fn push_yaml<'a>(documents: &mut Vec<Document<'a>>, text: &'a str, line: usize) {
    let says_something = |line: &str| {
        let content = line.trim_start_matches("---").trim();
        !content.is_empty() && !content.starts_with(['#', '%']) && content != "..."
    };
    if text.lines().any(says_something) {
        let place = format!("document {} (line {line})", documents.len() + 1);
        documents.push(Document { format: Format::Yaml, text, place, item_type: None });
    }
}

fn json_documents(text: &str) -> Vec<Document<'_>> {
    let mut documents = Vec::new();
    let mut values = serde_json::Deserializer::from_str(text).into_iter::<&RawValue>();
    loop {
        let start = values.byte_offset();
        match values.next() {
            Some(Ok(value)) => push_json(&mut documents, value.get()),
            Some(Err(_)) => {
                push_json(&mut documents, &text[start..]);
                return documents;
            }
            None => return documents,
        }
    }
}

fn push_json<'a>(documents: &mut Vec<Document<'a>>, text: &'a str) {
    let header: JsonHeader<'_> = serde_json::from_str(text).unwrap_or_default();
    let place = format!("document {}", documents.len() + 1);
    let (Some(kind), Some(items)) = (&header.kind, header.items) else {
        return documents.push(Document { format: Format::Json, text, place, item_type: None });
    };
    let item_type = item_type(header.api_version.as_deref().unwrap_or_default(), kind)
        .map(|(api_version, kind)| (api_version.to_owned(), kind.to_owned()));
    for (index, item) in items.into_iter().enumerate() {
        let place = format!("{place}, items[{index}]");
        documents.push(Document {
            format: Format::Json,
            text: item.get(),
            place,
            item_type: item_type.clone(),
        });
    }
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct JsonHeader<'a> {
    #[serde(borrow)]
    api_version: Option<Cow<'a, str>>,
    #[serde(borrow)]
    kind: Option<Cow<'a, str>>,
    #[serde(borrow)]
    items: Option<Vec<&'a RawValue>>,
}

/// The type that a list's kind gives to its items: `ServiceList` says Service, `List` says nothing.
fn item_type<'a>(api_version: &'a str, list_kind: &'a str) -> Option<(&'a str, &'a str)> {
    list_kind.strip_suffix("List").filter(|kind| !kind.is_empty()).map(|kind| (api_version, kind))
}

fn kind_of(api_version: &str, kind: &str) -> Option<Kind> {
    KINDS.iter().find(|known| (known.0, known.1) == (api_version, kind)).map(|known| known.2)
}

/// The kind, if `apiVersion` and `kind` stand at the start of a line as nearly everyone writes them. Merge keys
/// need [`serde_yaml_ng::Value::apply_merge`], which only the thorough way has.
fn sniff_kind(text: &str) -> Option<Kind> {
    let (mut api_version, mut kind) = (None, None);
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("kind:") {
            kind = Some(plain_scalar(rest));
        } else if let Some(rest) = line.strip_prefix("apiVersion:") {
            api_version = Some(plain_scalar(rest));
        } else if line.contains("<<:") {
            return None;
        }
    }
    kind_of(api_version?, kind?)
}

fn plain_scalar(text: &str) -> &str {
    let text = text.split(" #").next().unwrap_or(text).trim();
    text.trim_matches(['"', '\''])
}

/// Reads an object of a kind from any format. k8s-openapi checks `apiVersion` and `kind` where they are present.
fn read<'de, D: Deserializer<'de>>(kind: Kind, deserializer: D) -> Result<Object, D::Error> {
    Ok(match kind {
        Kind::Service => Object::Service(Box::new(Service::deserialize(deserializer)?)),
        Kind::EndpointSlice => Object::EndpointSlice(Box::new(EndpointSlice::deserialize(deserializer)?)),
        Kind::Endpoints => Object::Endpoints(Box::new(Endpoints::deserialize(deserializer)?)),
        Kind::Node => Object::Node(Box::new(Node::deserialize(deserializer)?)),
        Kind::ServiceCidr => Object::ServiceCidr(Box::new(ServiceCIDR::deserialize(deserializer)?)),
    })
}

/// As [`read`], but says at which field it failed.
fn read_explaining(kind: Kind, value: Value) -> Result<Object, (String, String)> {
    fn typed<T: DeserializeOwned>(value: Value) -> Result<Box<T>, (String, String)> {
        serde_path_to_error::deserialize(value)
            .map(Box::new)
            .map_err(|error| (error.path().to_string(), error.into_inner().to_string()))
    }
    Ok(match kind {
        Kind::Service => Object::Service(typed(value)?),
        Kind::EndpointSlice => Object::EndpointSlice(typed(value)?),
        Kind::Endpoints => Object::Endpoints(typed(value)?),
        Kind::Node => Object::Node(typed(value)?),
        Kind::ServiceCidr => Object::ServiceCidr(typed(value)?),
    })
}

/// Where a value stands, for refusals of what has no name.
struct Context<'a> {
    origin: &'a str,
    place: &'a str,
}

impl Context<'_> {
    fn refusal(&self, field: String, reason: String) -> Refusal {
        Refusal { object: format!("{}, {}", self.origin, self.place), field, reason }
    }
}

impl Parsed {
    fn accept(&mut self, object: Object, origin: &str) {
        let object_ref = object.object_ref();
        if object_ref.name.is_empty() {
            self.unnamed = true;
            self.refusals.push(Refusal {
                object: format!("{} in {origin}", object_ref.kind),
                field: "metadata.name".to_owned(),
                reason: "missing: every object has a name".to_owned(),
            });
        } else if object.is_watched() {
            self.objects.push(object);
        }
    }

    fn read_value(&mut self, mut value: Value, item_type: Option<(&str, &str)>, context: &Context<'_>) {
        if value.is_null() {
            return;
        }
        let text_of = |field: &str| value.get(field).and_then(Value::as_str).map(str::to_owned);
        let Some(kind) = text_of("kind").or(item_type.map(|known| known.1.to_owned())) else {
            self.unnamed = true;
            let reason = "missing: a document is an object with apiVersion, kind and metadata".to_owned();
            return self.refusals.push(context.refusal("kind".to_owned(), reason));
        };
        let api_version =
            text_of("apiVersion").or(item_type.map(|known| known.0.to_owned())).unwrap_or_default();
        match value.get_mut("items").map(Value::take) {
            Some(Value::Array(items)) if kind.ends_with("List") => {
                self.read_items(items, (&api_version, &kind), context);
            }
            _ => self.read_object(value, (&api_version, &kind), context),
        }
    }

    fn read_items(&mut self, items: Vec<Value>, list_type: (&str, &str), context: &Context<'_>) {
        for (index, item) in items.into_iter().enumerate() {
            let place = format!("{}, items[{index}]", context.place);
            let context = Context { origin: context.origin, place: &place };
            self.read_value(item, item_type(list_type.0, list_type.1), &context);
        }
    }

    fn read_object(&mut self, value: Value, object_type: (&str, &str), context: &Context<'_>) {
        let (api_version, kind_name) = object_type;
        let label = label(&value, kind_name, context);
        let refusal =
            |field: &str, reason| Refusal { object: label.clone(), field: field.to_owned(), reason };
        let Some(kind) = kind_of(api_version, kind_name) else {
            return self.refusals.push(match KINDS.iter().find(|known| known.1 == kind_name) {
                Some(known) => {
                    refusal("apiVersion", format!("is {api_version:?}; {kind_name} is read as {}", known.0))
                }
                None => refusal("kind", unsupported(kind_name)),
            });
        };
        let named = named(kind, &value);
        match read_explaining(kind, value) {
            Ok(object) => self.accept(object, context.origin),
            Err((field, reason)) => {
                self.refusals.push(refusal(&field, reason));
                self.unnamed |= named.is_none();
                self.unreadable.extend(named);
            }
        }
    }
}

fn unsupported(kind: &str) -> String {
    let known: Vec<&str> = KINDS.iter().map(|known| known.1).collect();
    format!("{kind} is not used here; a manifest may hold {} and lists of them", known.join(", "))
}

fn metadata_text<'a>(value: &'a Value, field: &str) -> Option<&'a str> {
    value.get("metadata")?.get(field)?.as_str()
}

/// What an operator calls the object: `Deployment default/ignored`, or where it stands if it has no name.
fn label(value: &Value, kind_name: &str, context: &Context<'_>) -> String {
    match (metadata_text(value, "namespace"), metadata_text(value, "name")) {
        (Some(namespace), Some(name)) => format!("{kind_name} {namespace}/{name}"),
        (None, Some(name)) => match KINDS.iter().find(|known| known.1 == kind_name) {
            Some((.., Kind::Service | Kind::EndpointSlice | Kind::Endpoints)) => {
                format!("{kind_name} default/{name}")
            }
            _ => format!("{kind_name} {name}"),
        },
        (_, None) => format!("{kind_name} in {}, {}", context.origin, context.place),
    }
}

fn named(kind: Kind, value: &Value) -> Option<ObjectRef> {
    let name = metadata_text(value, "name").filter(|name| !name.is_empty())?.to_owned();
    let namespace = match kind {
        Kind::Node | Kind::ServiceCidr => String::new(),
        _ => metadata_text(value, "namespace").unwrap_or("default").to_owned(),
    };
    Some(ObjectRef { kind, namespace, name })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERVICE: &str =
        "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {clusterIP: 10.0.0.1}\n";

    fn parse_all(format: Format, text: &str) -> Parsed {
        let mut all = Parsed::default();
        for document in documents(format, text) {
            let parsed = document.parse("f");
            all.objects.extend(parsed.objects);
            all.refusals.extend(parsed.refusals);
            all.unreadable.extend(parsed.unreadable);
            all.unnamed |= parsed.unnamed;
        }
        all
    }

    fn names(parsed: &Parsed) -> Vec<String> {
        parsed.objects.iter().map(|object| object.object_ref().to_string()).collect()
    }

    #[track_caller]
    fn assert_refused(parsed: &Parsed, object: &str, field: &str) {
        let [refusal] = parsed.refusals.as_slice() else { panic!("not one refusal: {:?}", parsed.refusals) };
        assert_eq!((refusal.object.as_str(), refusal.field.as_str()), (object, field), "{}", refusal.reason);
    }

    #[test]
    fn documents_are_cut_at_separators_only() {
        let text =
            "# a comment\n---\na: 1\n--- # two\nb: |\n  ---\n  x\n---\n---\n%YAML 1.2\n---\nc: 3\n...\n";
        let texts: Vec<&str> = documents(Format::Yaml, text).iter().map(|document| document.text).collect();
        assert_eq!(texts, ["---\na: 1\n", "--- # two\nb: |\n  ---\n  x\n", "---\nc: 3\n...\n"]);
    }

    #[test]
    fn windows_line_ends_and_quoted_types_are_read() {
        let text = "apiVersion: \"v1\"
kind: 'Service'
metadata:
  name: web
---
";
        assert_eq!(
            names(&parse_all(Format::Yaml, &format!("{text}{SERVICE}"))),
            ["Service default/web", "Service default/web"]
        );
    }

    #[test]
    fn a_syntax_error_hides_no_other_document() {
        let text = format!("{SERVICE}---\nkind: [\n---\n{}", SERVICE.replace("web", "api"));
        let parsed = parse_all(Format::Yaml, &text);
        assert_eq!(names(&parsed), ["Service default/web", "Service default/api"]);
        assert_refused(&parsed, "f, document 2 (line 5)", "");
        assert!(parsed.unnamed);
    }

    #[test]
    fn a_wrong_field_type_is_named_with_its_path() {
        let text = SERVICE.replace("{clusterIP: 10.0.0.1}", "{ports: [{port: 80}, {port: eighty}]}");
        let parsed = parse_all(Format::Yaml, &text);
        assert_refused(&parsed, "Service default/web", "spec.ports[1].port");
        assert_eq!(parsed.unreadable.len(), 1);
        assert!(!parsed.unnamed);
    }

    #[test]
    fn what_is_not_used_is_refused_by_kind_or_version() {
        let deployment =
            "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: ignored, namespace: default}\n";
        assert_refused(&parse_all(Format::Yaml, deployment), "Deployment default/ignored", "kind");
        let beta = "apiVersion: discovery.k8s.io/v1beta1\nkind: EndpointSlice\nmetadata: {name: s}\n";
        assert_refused(&parse_all(Format::Yaml, beta), "EndpointSlice default/s", "apiVersion");
        assert_refused(&parse_all(Format::Yaml, "just text\n"), "f, document 1 (line 1)", "kind");
        assert_refused(
            &parse_all(Format::Yaml, "apiVersion: v1\nkind: Node\n"),
            "Node in f",
            "metadata.name",
        );
    }

    #[test]
    fn lists_are_expanded_in_both_formats() {
        let typed = r#"{"apiVersion":"v1","kind":"ServiceList","items":[{"metadata":{"name":"a"}}]}"#;
        let plain = r#"{"kind":"List","apiVersion":"v1","items":[
            {"apiVersion":"v1","kind":"Node","metadata":{"name":"n"}}, {"kind":"Pod","metadata":{"name":"p"}}]}"#;
        for format in [Format::Yaml, Format::Json] {
            assert_eq!(names(&parse_all(format, typed)), ["Service default/a"], "{format:?}");
            let parsed = parse_all(format, plain);
            assert_eq!(names(&parsed), ["Node n"], "{format:?}");
            assert_refused(&parsed, "Pod p", "kind");
        }
    }

    #[test]
    fn json_values_in_a_row_survive_a_syntax_error_behind_them() {
        let node = r#"{"apiVersion":"v1","kind":"Node","metadata":{"name":"n"}}"#;
        let parsed = parse_all(Format::Json, &format!("{node}\n{node} {{broken"));
        assert_eq!(names(&parsed), ["Node n", "Node n"]);
        assert_refused(&parsed, "f, document 3", "");
    }

    #[test]
    fn merge_keys_are_merged_as_kubectl_does() {
        let text =
            "apiVersion: v1\nkind: Service\nx-base: &b {name: web, namespace: shop}\nmetadata:\n  <<: *b\n";
        assert_eq!(names(&parse_all(Format::Yaml, text)), ["Service shop/web"]);
    }

    #[test]
    fn objects_of_other_proxies_and_headless_ones_are_as_if_absent() {
        for text in [
            SERVICE
                .replace("{name: web}", "{name: w, labels: {service.kubernetes.io/service-proxy-name: ''}}"),
            SERVICE.replace("10.0.0.1", "None"),
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: s\n  labels: \
             {service.kubernetes.io/headless: ''}\naddressType: IPv4\nendpoints: []\n"
                .to_owned(),
        ] {
            assert_eq!(parse_all(Format::Yaml, &text), Parsed::default(), "{text}");
        }
    }
}
