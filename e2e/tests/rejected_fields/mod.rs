//! The rejected manifests of the fields around the model: runtime, files, resources, pods, network, monitoring.

use serde_json::{Value, json};

use super::{Case, manifest, model, spec};

pub(super) fn table() -> Vec<Case> {
    [
        about_the_source(),
        about_arguments(),
        about_the_environment(),
        about_files(),
        about_resources(),
        about_pods(),
        about_the_network(),
        about_access(),
        about_the_rest(),
    ]
    .concat()
}

fn about_the_source() -> Vec<Case> {
    let secret = |secret: Value| model("secretRef", secret);
    vec![
        (
            "unknown format",
            model("format", json!("Pickle")),
            &["spec.model.format", "Auto", "Safetensors", "GGUF"],
        ),
        (
            "format in lower case",
            model("format", json!("gguf")),
            &["spec.model.format", "GGUF"],
        ),
        (
            "safetensors from one address",
            manifest(|m| {
                m["spec"]["model"]["source"] = json!("https://a/b.safetensors");
                m["spec"]["model"]["format"] = json!("Safetensors");
            }),
            &[
                "spec.model.format",
                "does not work with an https:// source",
                "name a repository",
            ],
        ),
        (
            "secret without a name",
            secret(json!({})),
            &["spec.model.secretRef.name", "Required"],
        ),
        ("secret as text", secret(json!("hub")), &["spec.model.secretRef"]),
        (
            "secret of another namespace",
            secret(json!({"name": "other/hub"})),
            &["spec.model.secretRef.name", "same namespace"],
        ),
        (
            "token in the manifest",
            secret(json!({"name": "hub", "token": "x"})),
            &["spec.model.secretRef.token", "not declared"],
        ),
        (
            "Hub token beside the source",
            model("token", json!("x")),
            &["spec.model.token", "not declared"],
        ),
    ]
}

fn about_arguments() -> Vec<Case> {
    let args = |args: Value| spec("runtime", json!({"args": args}));
    vec![
        (
            "another digest by argument",
            args(json!(["--digest=sha256:00"])),
            &["spec.runtime.args", "which bytes are served", "spec.model"],
        ),
        (
            "another store by two arguments",
            args(json!(["--store", "/tmp"])),
            &["spec.runtime.args", "which bytes are served"],
        ),
        (
            "overlay by argument",
            args(json!(["--overlay=/tmp"])),
            &["spec.runtime.args", "spec.files"],
        ),
        (
            "name by argument",
            args(json!(["--served-name=x"])),
            &["spec.runtime.args", "spec.model.servedName"],
        ),
        (
            "drain by argument",
            args(json!(["--drain-timeout=1s"])),
            &["spec.runtime.args", "spec.drain.timeoutSeconds"],
        ),
        (
            "port by argument",
            args(json!(["--threads=2", "--port=1"])),
            &["spec.runtime.args", "ports", "remove them"],
        ),
        (
            "identity by argument",
            args(json!(["--pod-uid=x"])),
            &["spec.runtime.args", "identity", "remove them"],
        ),
        (
            "keys by argument",
            args(json!(["--api-keys=/mnt/keys"])),
            &["spec.runtime.args", "use spec.access"],
        ),
        (
            "collector by argument",
            args(json!(["--otlp-endpoint=http://collector:4318"])),
            &["spec.runtime.args", "use spec.observability.tracing"],
        ),
        (
            "help by argument",
            args(json!(["--help"])),
            &["spec.runtime.args", "remove --help"],
        ),
        (
            "empty argument",
            args(json!([""])),
            &["spec.runtime.args[0]", "at least 1"],
        ),
        (
            "pull policy",
            spec("runtime", json!({"imagePullPolicy": "Sometimes"})),
            &["spec.runtime.imagePullPolicy", "IfNotPresent"],
        ),
        (
            "pull secret as text",
            spec("runtime", json!({"imagePullSecrets": ["registry"]})),
            &["spec.runtime.imagePullSecrets", "element 0"],
        ),
        (
            "pull secret with a wrong name",
            spec("runtime", json!({"imagePullSecrets": [{"name": "My Registry"}]})),
            &["spec.runtime.imagePullSecrets", "kubectl get secrets"],
        ),
        (
            "pull secret twice",
            spec("runtime", json!({"imagePullSecrets": [{"name": "a"}, {"name": "a"}]})),
            &["spec.runtime.imagePullSecrets", "duplicate"],
        ),
    ]
}

fn about_the_environment() -> Vec<Case> {
    let env = |variable: Value| spec("runtime", json!({"env": [variable]}));
    let literal = |name: &str| env(json!({"name": name, "value": "x"}));
    let reference = json!({"secretKeyRef": {"name": "s", "key": "k"}});
    vec![
        (
            "token in the manifest's environment",
            literal("HF_TOKEN"),
            &["spec.runtime.env[0]", "valueFrom.secretKeyRef"],
        ),
        (
            "password in small letters",
            literal("db_password"),
            &["spec.runtime.env[0]", "valueFrom.secretKeyRef"],
        ),
        (
            "key in the manifest's environment",
            literal("API_KEY"),
            &["spec.runtime.env[0]", "valueFrom.secretKeyRef"],
        ),
        (
            "secret in the manifest's environment",
            literal("CLIENT_SECRET"),
            &["spec.runtime.env[0]", "valueFrom.secretKeyRef"],
        ),
        (
            "variable of the operator",
            literal("ESCADRE_POD_UID"),
            &["spec.runtime.env[0].name", "ESCADRE_", "spec.model"],
        ),
        (
            "variable of the loader",
            literal("LD_PRELOAD"),
            &["spec.runtime.env[0].name", "loader", "spec.runtime.image"],
        ),
        (
            "tunables of the loader",
            literal("GLIBC_TUNABLES"),
            &["spec.runtime.env[0].name", "loader"],
        ),
        (
            "variable with a space",
            literal("MY VARIABLE"),
            &["spec.runtime.env[0].name", "letters, digits"],
        ),
        (
            "value and reference",
            env(json!({"name": "A", "value": "x", "valueFrom": reference})),
            &["spec.runtime.env[0]", "not both"],
        ),
        (
            "unknown kind of reference",
            env(json!({"name": "A", "valueFrom": {"vaultRef": {}}})),
            &["valueFrom.vaultRef", "not declared"],
        ),
        (
            "variable twice",
            spec("runtime", json!({"env": [{"name": "A"}, {"name": "A"}]})),
            &["spec.runtime.env", "duplicate"],
        ),
    ]
}

fn about_files() -> Vec<Case> {
    let file = |file: Value| spec("files", json!([file]));
    let text = |path: &str| file(json!({"path": path, "inline": "x"}));
    let source = |source: Value| file(json!({"path": "chat_template.jinja", "configMapRef": source}));
    vec![
        (
            "file that climbs",
            text("../chat_template.jinja"),
            &["spec.files[0].path", "without '..'"],
        ),
        (
            "absolute file",
            text("/chat_template.jinja"),
            &["spec.files[0].path", "relative to the model's folder"],
        ),
        (
            "weights over weights",
            text("model.safetensors"),
            &["spec.files[0].path", "belong to the digest", "publish another model"],
        ),
        (
            "other configuration",
            text("config.json"),
            &["spec.files[0].path", "belong to the digest"],
        ),
        (
            "file without content",
            file(json!({"path": "chat_template.jinja"})),
            &["spec.files[0]", "exactly one of them"],
        ),
        (
            "file with two contents",
            file(json!({"path": "chat_template.jinja", "inline": "x", "configMapRef": {"name": "a", "key": "b"}})),
            &["spec.files[0]", "exactly one of them"],
        ),
        (
            "file without a key",
            source(json!({"name": "templates"})),
            &["spec.files[0].configMapRef.key", "Required"],
        ),
        (
            "file from an impossible key",
            source(json!({"name": "templates", "key": "a/b"})),
            &["spec.files[0].configMapRef.key", "letters, digits"],
        ),
        (
            "file twice",
            spec(
                "files",
                json!([{"path": "chat_template.jinja", "inline": "a"}, {"path": "chat_template.jinja", "inline": "b"}]),
            ),
            &["spec.files", "duplicate"],
        ),
    ]
}

fn about_resources() -> Vec<Case> {
    let claim = |claim: Value| spec("resources", json!({"claims": [claim]}));
    vec![
        (
            "claim without a template",
            claim(json!({"name": "gpu"})),
            &["spec.resources.claims[0].resourceClaimTemplateName", "Required"],
        ),
        (
            "claim with a wrong name",
            claim(json!({"name": "GPU 1", "resourceClaimTemplateName": "one"})),
            &["spec.resources.claims[0].name", "short name"],
        ),
        (
            "claim with a wrong template",
            claim(json!({"name": "gpu", "resourceClaimTemplateName": "One Gpu"})),
            &["resourceClaimTemplateName", "kubectl get resourceclaimtemplates"],
        ),
        (
            "no memory",
            spec("resources", json!({"memory": "0"})),
            &["spec.resources.memory", "above 0"],
        ),
        (
            "negative processors",
            spec("resources", json!({"cpu": "-1"})),
            &["spec.resources.cpu", "above 0"],
        ),
    ]
}

fn about_pods() -> Vec<Case> {
    let label = |key: &str, value: &str| spec("podLabels", json!({key: value}));
    let annotation = |key: &str| spec("podAnnotations", json!({key: "x"}));
    vec![
        (
            "own label",
            label("escadre.dev/slot", "1"),
            &["spec.podLabels", "use another key"],
        ),
        (
            "label of the Service",
            label("app.kubernetes.io/component", "x"),
            &["spec.podLabels", "use another key"],
        ),
        (
            "label with a space",
            label("team", "two words"),
            &["spec.podLabels", "letters, digits"],
        ),
        (
            "long label",
            label("team", &"a".repeat(64)),
            &["spec.podLabels.team", "63"],
        ),
        (
            "own annotation",
            annotation("escadre.dev/applied"),
            &["spec.podAnnotations", "use another key"],
        ),
        (
            "annotation that has a field",
            annotation("cluster-autoscaler.kubernetes.io/safe-to-evict"),
            &["spec.podAnnotations", "spec.disruption.safeToEvict"],
        ),
        (
            "account with a wrong name",
            spec("serviceAccountName", json!("system:admin")),
            &["spec.serviceAccountName", "kubectl get serviceaccounts"],
        ),
        (
            "overrides as a list",
            spec("podOverrides", json!([])),
            &["spec.podOverrides", "object"],
        ),
        (
            "overrides as text",
            spec("podOverrides", json!("spec: {}")),
            &["spec.podOverrides", "object"],
        ),
    ]
}

fn about_the_network() -> Vec<Case> {
    let network = |field: &str, value: Value| spec("network", json!({field: value}));
    vec![
        (
            "proxy without a scheme",
            network("httpsProxy", json!("proxy:3128")),
            &["spec.network.httpsProxy", "http://proxy.example.com:3128"],
        ),
        (
            "proxy with a password",
            network("httpsProxy", json!("http://me:secret@proxy:3128")),
            &["spec.network.httpsProxy", "without user name"],
        ),
        (
            "exceptions without a proxy",
            network("noProxy", json!(".svc")),
            &["spec.network.noProxy", "name the proxy"],
        ),
        (
            "exceptions with spaces",
            spec("network", json!({"httpsProxy": "http://p", "noProxy": "a, b"})),
            &["spec.network.noProxy", "separated by commas"],
        ),
        (
            "certificates in the manifest",
            network("caBundleRef", json!("-----BEGIN")),
            &["spec.network.caBundleRef"],
        ),
        (
            "certificates without a name",
            network("caBundleRef", json!({"key": "ca.crt"})),
            &["spec.network.caBundleRef.name", "Required"],
        ),
        (
            "certificates from an impossible key",
            network("caBundleRef", json!({"name": "ca", "key": "a b"})),
            &["spec.network.caBundleRef.key", "letters, digits"],
        ),
    ]
}

fn about_access() -> Vec<Case> {
    let access = |access: Value| spec("access", access);
    vec![
        (
            "access to nothing",
            access(json!({})),
            &["spec.access", "at least one of"],
        ),
        (
            "required without keys",
            access(json!({"required": true, "limits": {"requestsPerMinute": 1}})),
            &["spec.access.required", "no effect without"],
        ),
        (
            "limits of nothing",
            access(json!({"limits": {}})),
            &["spec.access.limits", "requestsPerMinute, tokensPerMinute or both"],
        ),
        (
            "limit of 0",
            access(json!({"limits": {"tokensPerMinute": 0}})),
            &["spec.access.limits.tokensPerMinute", "greater than or equal to 1"],
        ),
        (
            "keys in the manifest",
            access(json!({"apiKeys": {"alice": "sk-1"}})),
            &["spec.access.apiKeys", "not declared"],
        ),
        (
            "keys of another namespace",
            access(json!({"apiKeysSecretRef": {"name": "other/keys"}})),
            &["spec.access.apiKeysSecretRef.name", "same namespace"],
        ),
        (
            "certificate without a name",
            access(json!({"tls": {}})),
            &["spec.access.tls.secretRef", "Required"],
        ),
    ]
}

fn about_the_rest() -> Vec<Case> {
    let disruption = |field: &str, value: Value| spec("disruption", json!({field: value}));
    vec![
        (
            "negative pods that stay",
            disruption("minAvailable", json!(-1)),
            &["spec.disruption.minAvailable", "0 or more"],
        ),
        (
            "more than all pods stay",
            disruption("minAvailable", json!("101%")),
            &["spec.disruption.minAvailable", "'0%' to '100%'"],
        ),
        (
            "pods that stay in words",
            disruption("minAvailable", json!("half")),
            &["spec.disruption.minAvailable", "percentage"],
        ),
        (
            "safe to evict as text",
            disruption("safeToEvict", json!("true")),
            &["spec.disruption.safeToEvict", "boolean"],
        ),
        (
            "monitor as a boolean",
            spec("observability", json!({"podMonitor": true})),
            &["spec.observability.podMonitor"],
        ),
        (
            "monitor with another word",
            spec("observability", json!({"podMonitor": "Always"})),
            &["spec.observability.podMonitor", "Auto", "Enabled", "Disabled"],
        ),
        (
            "tracing without a collector",
            spec("observability", json!({"tracing": {"sampling": 0.5}})),
            &["spec.observability.tracing.endpoint", "Required"],
        ),
        (
            "collector without a scheme",
            spec("observability", json!({"tracing": {"endpoint": "collector:4318"}})),
            &["spec.observability.tracing.endpoint", "http://collector"],
        ),
        (
            "collector of gRPC",
            spec(
                "observability",
                json!({"tracing": {"endpoint": "grpc://collector:4317"}}),
            ),
            &["spec.observability.tracing.endpoint", "gRPC"],
        ),
        (
            "more than every request",
            spec(
                "observability",
                json!({"tracing": {"endpoint": "http://collector:4318", "sampling": 5}}),
            ),
            &["spec.observability.tracing.sampling"],
        ),
        (
            "field of a later version",
            spec("scaling", json!({"owner": "Native"})),
            &["spec.scaling", "not declared"],
        ),
    ]
}
