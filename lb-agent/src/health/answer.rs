//! What a health check node port says, to the byte as kube-proxy says it (spec 6.4 to 6.7): some load balancers read
//! the body, some the code, some the weight.

use axum::{
    http::{HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};

use super::server::NOSNIFF;
use crate::model::service::ServiceName;

/// How many backends this node has, for load balancers that weigh nodes.
const WEIGHT: HeaderName = HeaderName::from_static("x-load-balancing-endpoint-weight");

/// The answer for a Service with so many addresses of ready backends on this node.
pub(super) fn answer(service: &ServiceName, local: usize, is_proxy_healthy: bool) -> Response {
    let code = match local > 0 && is_proxy_healthy {
        true => StatusCode::OK,
        false => StatusCode::SERVICE_UNAVAILABLE,
    };
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("application/json")),
        NOSNIFF,
        (WEIGHT, HeaderValue::from(local)),
    ];
    (code, headers, body(service, local, is_proxy_healthy)).into_response()
}

/// Tabs, no newline at the end.
fn body(service: &ServiceName, local: usize, is_proxy_healthy: bool) -> String {
    let quoted = |name: &str| serde_json::Value::from(name).to_string();
    let (namespace, name) = (quoted(&service.namespace), quoted(&service.name));
    format!(
        "{{\n\t\"service\": {{\n\t\t\"namespace\": {namespace},\n\t\t\"name\": {name}\n\t}},\n\
         \t\"localEndpoints\": {local},\n\t\"serviceProxyHealthy\": {is_proxy_healthy}\n}}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_body_is_kube_proxy_s_to_the_byte() {
        let service = ServiceName { namespace: "ns".into(), name: "svc".into() };
        let expected = "{\n\t\"service\": {\n\t\t\"namespace\": \"ns\",\n\t\t\"name\": \"svc\"\n\t},\n\
                        \t\"localEndpoints\": 2,\n\t\"serviceProxyHealthy\": true\n}";
        assert_eq!(body(&service, 2, true), expected, "spec 6.6");
    }

    #[test]
    fn the_code_needs_a_local_backend_and_a_healthy_proxy() {
        let service = ServiceName { namespace: "ns".into(), name: "svc".into() };
        for (local, is_healthy, code) in [(2, true, 200), (0, true, 503), (2, false, 503), (0, false, 503)] {
            let answer = answer(&service, local, is_healthy);
            assert_eq!(answer.status().as_u16(), code, "spec 6.4: {local} {is_healthy}");
            let header = |name: &str| answer.headers()[name].to_str().unwrap().to_owned();
            assert_eq!(
                header("x-load-balancing-endpoint-weight"),
                local.to_string(),
                "spec 6.5: also with 503"
            );
            assert_eq!(header("content-type"), "application/json");
            assert_eq!(header("x-content-type-options"), "nosniff");
        }
    }
}
