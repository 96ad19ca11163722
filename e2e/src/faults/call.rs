//! One request to the API server, by the words of RBAC: which verb, on which resource. Pure.

use std::fmt;

use http::Method;

/// What a request does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[expect(missing_docs, reason = "the names are those of RBAC")]
pub enum Verb {
    Get,
    List,
    Watch,
    Create,
    Update,
    Patch,
    Delete,
    DeleteCollection,
}

impl Verb {
    /// Whether it can change something.
    pub fn is_write(self) -> bool {
        !matches!(self, Self::Get | Self::List | Self::Watch)
    }
}

impl fmt::Display for Verb {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Get => "get",
            Self::List => "list",
            Self::Watch => "watch",
            Self::Create => "create",
            Self::Update => "update",
            Self::Patch => "patch",
            Self::Delete => "delete",
            Self::DeleteCollection => "deletecollection",
        })
    }
}

/// One request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// What it does.
    pub verb: Verb,
    /// On what, as RBAC writes it: `pods`, `pods/status`, `llmdeployments.escadre.dev/status`; for anything but a
    /// resource the path.
    pub resource: String,
    /// In which namespace, if in one.
    pub namespace: Option<String>,
    /// On which object, if on one.
    pub name: Option<String>,
}

impl Call {
    /// Reads a request's method, path and query.
    pub fn read(method: &Method, path: &str, query: Option<&str>) -> Self {
        let place = place(path);
        let is_watch = query
            .unwrap_or_default()
            .split('&')
            .any(|pair| matches!(pair, "watch" | "watch=true" | "watch=1"));
        let verb = match (method, &place.name) {
            (&Method::POST, _) => Verb::Create,
            (&Method::PUT, _) => Verb::Update,
            (&Method::PATCH, _) => Verb::Patch,
            (&Method::DELETE, Some(_)) => Verb::Delete,
            (&Method::DELETE, None) => Verb::DeleteCollection,
            _ if is_watch => Verb::Watch,
            (_, None) if place.is_resource => Verb::List,
            _ => Verb::Get,
        };
        Self {
            verb,
            resource: place.resource,
            namespace: place.namespace,
            name: place.name,
        }
    }

    /// Whether it changes something other than a lease: a lease is renewed for ever, also in a world that stands still.
    pub fn is_counted_write(&self) -> bool {
        self.verb.is_write() && self.resource != "leases.coordination.k8s.io" && !self.is_question()
    }

    /// Reviews are posted, but only ask.
    fn is_question(&self) -> bool {
        self.resource.ends_with(".authorization.k8s.io") || self.resource.ends_with(".authentication.k8s.io")
    }

    /// Whether it publishes an event.
    pub fn is_event(&self) -> bool {
        self.resource == "events" || self.resource == "events.events.k8s.io"
    }
}

impl fmt::Display for Call {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} {}", self.verb, self.resource)?;
        if let Some(namespace) = &self.namespace {
            write!(formatter, " in {namespace}")?;
        }
        self.name.iter().try_for_each(|name| write!(formatter, " {name}"))
    }
}

#[derive(Debug, Default)]
struct Place {
    resource: String,
    namespace: Option<String>,
    name: Option<String>,
    is_resource: bool,
}

fn place(path: &str) -> Place {
    let segments: Vec<&str> = path.split('/').filter(|segment| !segment.is_empty()).collect();
    let (group, rest) = match segments.as_slice() {
        ["api", _, rest @ ..] if !rest.is_empty() => (None, rest),
        ["apis", group, _, rest @ ..] if !rest.is_empty() => (Some(*group), rest),
        _ => {
            return Place {
                resource: path.to_owned(),
                ..Place::default()
            };
        }
    };
    // `namespaces/NAME` alone, and its subresources, are the namespace itself.
    let (namespace, rest) = match rest {
        ["namespaces", namespace, inner, rest @ ..] if !matches!(*inner, "status" | "finalize") => {
            let mut inside = vec![*inner];
            inside.extend(rest);
            (Some((*namespace).to_owned()), inside)
        }
        other => (None, other.to_vec()),
    };
    let mut resource = rest.first().copied().unwrap_or_default().to_owned();
    if let Some(group) = group {
        resource = format!("{resource}.{group}");
    }
    if let Some(subresource) = rest.get(2) {
        resource = format!("{resource}/{subresource}");
    }
    Place {
        resource,
        namespace,
        name: rest.get(1).map(|name| (*name).to_owned()),
        is_resource: true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(method: &Method, path: &str, query: Option<&str>) -> String {
        Call::read(method, path, query).to_string()
    }

    #[test]
    fn requests_are_told_apart_as_rbac_does() {
        assert_eq!(read(&Method::GET, "/api/v1/pods", Some("limit=5")), "list pods");
        assert_eq!(
            read(&Method::GET, "/api/v1/namespaces/a/pods", Some("watch=true&x=1")),
            "watch pods in a"
        );
        assert_eq!(read(&Method::GET, "/api/v1/namespaces/a", None), "get namespaces a");
        assert_eq!(
            read(
                &Method::PATCH,
                "/apis/escadre.dev/v1alpha1/namespaces/a/llmdeployments/b/status",
                None
            ),
            "patch llmdeployments.escadre.dev/status in a b"
        );
        assert_eq!(
            read(
                &Method::DELETE,
                "/apis/apps/v1/namespaces/a/controllerrevisions/c",
                None
            ),
            "delete controllerrevisions.apps in a c"
        );
        assert_eq!(
            read(&Method::DELETE, "/api/v1/namespaces/a/pods", None),
            "deletecollection pods in a"
        );
        assert_eq!(read(&Method::GET, "/readyz", None), "get /readyz");
        assert_eq!(
            read(&Method::GET, "/apis/escadre.dev/v1alpha1", None),
            "get /apis/escadre.dev/v1alpha1"
        );
    }

    #[test]
    fn leases_and_questions_do_not_count_as_writes() {
        let counts = |method, path: &str| Call::read(&method, path, None).is_counted_write();
        assert!(!counts(
            Method::PUT,
            "/apis/coordination.k8s.io/v1/namespaces/a/leases/b"
        ));
        assert!(!counts(
            Method::POST,
            "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
        ));
        assert!(!counts(Method::GET, "/api/v1/pods"));
        assert!(counts(Method::POST, "/api/v1/namespaces/a/pods"));
        assert!(counts(Method::PATCH, "/api/v1/namespaces/a/pods/b"));
    }
}
