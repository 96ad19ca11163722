//! The chart renders, its values are checked strictly, and what it grants is what the operator asks for.

#![expect(clippy::unwrap_used, reason = "a helper of tests fails the test")]

use std::process::Output;

use escadre_e2e::cluster::{Cache, Component, ensure_programs};
use escadre_e2e::escadre::source_tree;

async fn helm(arguments: &[&str]) -> Output {
    let programs = ensure_programs(&Cache::from_environment().unwrap(), &[Component::Helm])
        .await
        .unwrap();
    let home = tempfile::tempdir().unwrap();
    let mut command = tokio::process::Command::new(programs.file(Component::Helm).unwrap());
    for variable in ["HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME"] {
        command.env(variable, home.path());
    }
    command
        .args(arguments)
        .current_dir(source_tree())
        .output()
        .await
        .unwrap()
}

async fn render(values: &[&str]) -> Result<String, String> {
    let arguments = [
        &["template", "escadre", "charts/escadre", "--namespace", "escadre-system"][..],
        values,
    ]
    .concat();
    let output = helm(&arguments).await;
    if output.status.success() {
        Ok(String::from_utf8(output.stdout).unwrap())
    } else {
        Err(String::from_utf8(output.stderr).unwrap())
    }
}

#[tokio::test]
async fn chart_passes_lint() {
    let output = helm(&["lint", "--strict", "charts/escadre"]).await;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

#[tokio::test]
async fn rendered_operator_runs_without_rights_on_its_node() {
    let text = render(&[]).await.unwrap();
    for words in [
        "kind: CustomResourceDefinition",
        "helm.sh/resource-policy: keep",
        "kind: Deployment",
        "type: Recreate",
        "runAsNonRoot: true",
        "readOnlyRootFilesystem: true",
        "allowPrivilegeEscalation: false",
    ] {
        assert!(text.contains(words), "no `{words}` in:\n{text}");
    }
    assert!(
        !text.contains("verbs: [\"*\"]") && !text.contains("resources: [\"*\"]"),
        "{text}"
    );
    // The descriptions of fields speak of them, so without the resource.
    let text = render(&["--set", "crds.install=false"]).await.unwrap();
    assert!(!text.contains("secrets"), "the operator reads no Secrets");
}

#[tokio::test]
async fn resource_can_be_left_to_someone_else() {
    let text = render(&["--set", "crds.install=false"]).await.unwrap();
    assert!(!text.contains("kind: CustomResourceDefinition"));
}

#[tokio::test]
async fn mistyped_value_fails_the_install() {
    let error = render(&["--set", "operator.image.tga=1"]).await.unwrap_err();
    assert!(error.contains("tga"), "{error}");
    let error = render(&["--set", "operator.image.pullPolicy=Sometimes"])
        .await
        .unwrap_err();
    assert!(error.contains("pullPolicy"), "{error}");
}
