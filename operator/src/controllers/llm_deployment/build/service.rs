//! The Service in front of the pods: named like the object, one port named `http`.

use std::collections::BTreeMap;

use escadre_crds::names;
use escadre_crds::v1alpha1::ServiceType;
use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::super::validate::Valid;
use super::drift;

/// Builds the Service. `None`: the one that is there is as it should be.
pub(super) fn build_service(valid: &Valid) -> Option<Service> {
    // The selector must be exactly ours: one label more, and it selects nothing.
    let selector = |service: &Service| service.spec.as_ref().and_then(|spec| spec.selector.clone());
    let wanted = desired(valid);
    let before = valid
        .service_before
        .as_ref()
        .filter(|before| selector(before) == selector(&wanted));
    drift::unless_applied(wanted, before)
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
                app_protocol: valid.is_encrypted().then(|| "https".to_owned()),
                target_port: Some(IntOrString::String(names::PORT_HTTP.to_owned())),
                ..ServicePort::default()
            }]),
            ..ServiceSpec::default()
        }),
        status: None,
    }
}
