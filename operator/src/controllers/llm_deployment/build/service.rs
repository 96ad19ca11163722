//! The Service in front of the pods: named like the object, one port named `http`.

use std::collections::BTreeMap;

use escadre_crds::names;
use escadre_crds::v1alpha1::ServiceType;
use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::Value;

use super::super::revision::{fingerprint, json};
use super::super::validate::Valid;

/// Builds the Service. `None`: the one that is there is as it should be.
pub(super) fn build_service(valid: &Valid) -> Option<Service> {
    let mut wanted = desired(valid);
    // What is applied is written down beside it, so that a field that we leave out now is noticed and taken back.
    let applied = fingerprint(&json(&wanted));
    wanted
        .metadata
        .annotations
        .get_or_insert_default()
        .insert(names::ANNOTATION_APPLIED.to_owned(), applied);
    let is_there = valid
        .service_before
        .as_ref()
        .is_some_and(|before| is_applied(before, &wanted));
    (!is_there).then_some(wanted)
}

fn desired(valid: &Valid) -> Service {
    let type_ = match valid.service.type_ {
        ServiceType::ClusterIP => "ClusterIP",
        ServiceType::NodePort => "NodePort",
        ServiceType::LoadBalancer => "LoadBalancer",
    };
    Service {
        metadata: ObjectMeta {
            name: Some(valid.name.clone()),
            namespace: Some(valid.namespace.clone()),
            labels: Some(valid.labels()),
            annotations: valid.service.annotations.clone(),
            owner_references: Some(vec![valid.owner.clone()]),
            ..ObjectMeta::default()
        },
        spec: Some(ServiceSpec {
            type_: Some(type_.to_owned()),
            selector: Some(BTreeMap::from([
                (names::LABEL_COMPONENT.to_owned(), names::COMPONENT_RUNTIME.to_owned()),
                (names::LABEL_DEPLOYMENT.to_owned(), valid.name.clone()),
            ])),
            ports: Some(vec![ServicePort {
                name: Some(names::PORT_HTTP.to_owned()),
                port: valid.service.port,
                protocol: Some("TCP".to_owned()),
                target_port: Some(IntOrString::String(names::PORT_HTTP.to_owned())),
                ..ServicePort::default()
            }]),
            ..ServiceSpec::default()
        }),
        status: None,
    }
}

/// Whether a Service is as wanted. Its selector must be exactly ours: one label more, and it selects nothing.
fn is_applied(before: &Service, wanted: &Service) -> bool {
    let selector = |service: &Service| service.spec.as_ref().and_then(|spec| spec.selector.clone());
    if selector(before) != selector(wanted) {
        return false;
    }
    contains(&json(before), &json(wanted))
}

/// Whether everything in `wanted` is in `there` with the same value. What the API server or others added is ignored.
fn contains(there: &Value, wanted: &Value) -> bool {
    match (there, wanted) {
        (Value::Object(there), Value::Object(wanted)) => wanted
            .iter()
            .all(|(key, value)| there.get(key).is_some_and(|there| contains(there, value))),
        (Value::Array(there), Value::Array(wanted)) => wanted
            .iter()
            .all(|wanted| there.iter().any(|there| contains(there, wanted))),
        (there, wanted) => there == wanted,
    }
}
