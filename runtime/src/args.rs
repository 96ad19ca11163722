//! The command line and the environment: the only place that reads either.

use crate::backend::KvType;
use crate::backend::device::DeviceChoice;
use crate::bench::BenchArgs;
use crate::inspect::InspectArgs;
use crate::model::{Format, Pooling, Quantize};
use crate::requirements::Requirements;
use crate::sign::SignArgs;
use crate::telemetry::LogFormat;
use crate::verify::VerifyArgs;
use clap::{Args as ClapArgs, Parser, Subcommand};
use escadre_verify::Digest;
use std::net::IpAddr;
use std::num::{NonZeroU32, NonZeroUsize};
use std::path::PathBuf;
use std::time::Duration;

/// Where `hf://` sources are fetched from unless `--endpoint` names a mirror.
pub const DEFAULT_HF_ENDPOINT: &str = "https://huggingface.co";

/// Where `fetch` looks for credentials, since arguments can be seen by everybody on a machine.
const CREDENTIALS_HELP: &str = "\
Credentials are sent to the source alone, and come from the environment:
  hf://     ESCADRE_SOURCE_TOKEN
  https://  ESCADRE_SOURCE_TOKEN, or ESCADRE_SECRET_username and ESCADRE_SECRET_password
  oci://    the file of --registry-config, or ESCADRE_SECRET_username and ESCADRE_SECRET_password
  s3://     AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and AWS_SESSION_TOKEN where they expire
A Secret in a cluster has the keys that docs/guides/sources.md names.";

/// Fetches, verifies and serves a language model.
#[derive(Debug, Parser)]
#[command(name = "escadre-runtime", version, about, propagate_version = true)]
pub struct Args {
    /// How log lines are written to standard error; `auto` is text on a terminal and JSON elsewhere.
    #[arg(long, value_enum, default_value_t, global = true, env = "ESCADRE_LOG_FORMAT")]
    pub log_format: LogFormat,

    /// What is logged, for example `info` or `escadre_runtime=debug,warn`.
    #[arg(long, default_value = "info", global = true, env = "ESCADRE_LOG")]
    pub log: String,

    /// The file that receives the reason of a fatal error, if it exists.
    #[arg(
        long,
        default_value = "/dev/termination-log",
        global = true,
        hide = true,
        env = "ESCADRE_TERMINATION_LOG"
    )]
    pub termination_log: PathBuf,

    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Download a model into a store and check its digest.
    ///
    /// The files are hashed as they come, kept in quarantine until the model's digest is right, and then renamed
    /// into `<STORE>/sha256/<digest>/`. An interrupted download is resumed; a model that is there already is hashed
    /// again and not downloaded.
    #[command(after_help = CREDENTIALS_HELP)]
    Fetch(FetchArgs),
    /// Verify a model, load it, and serve it over an OpenAI-compatible API.
    ///
    /// On a laptop: `escadre-runtime serve --model model.gguf`, then talk to `http://127.0.0.1:8080/v1`.
    Serve(ServeArgs),
    /// Check that files are those that were signed, or those of a digest.
    ///
    /// Nothing is read over a network. The exit code is 0 only when all is verified, 1 when it is refused, 2 when there
    /// is no verdict.
    Verify(VerifyArgs),
    /// Sign a model with a private key.
    ///
    /// The signature is one of OpenSSF Model Signing 1.0, which `verify` and `model_signing verify key` accept.
    Sign(SignArgs),
    /// Check a model's structure and print what it is and how much memory it needs.
    Inspect(InspectArgs),
    /// Print the description of the API: an `OpenAPI` document, or the page of the reference.
    Describe(DescribeArgs),
    /// Measure how fast a model reads prompts and gives answers on this machine.
    Bench(BenchArgs),
}

/// Who this process is in its cluster; reported on the status page and used for nothing else.
#[derive(Debug, Clone, Default, ClapArgs)]
pub struct Identity {
    /// The pod's UID.
    #[arg(long, hide = true, env = "ESCADRE_POD_UID")]
    pub pod_uid: Option<String>,

    /// The pod's name.
    #[arg(long, hide = true, env = "ESCADRE_POD_NAME")]
    pub pod_name: Option<String>,

    /// The revision of the deployment that this pod belongs to.
    #[arg(id = "pod_revision", long = "pod-revision", hide = true, env = "ESCADRE_REVISION")]
    pub revision: Option<String>,
}

/// Arguments of `describe`.
#[derive(Debug, ClapArgs)]
pub struct DescribeArgs {
    /// The page of the reference, in Markdown.
    #[arg(long)]
    pub markdown: bool,
}

/// Arguments of `fetch`.
#[derive(Debug, ClapArgs)]
pub struct FetchArgs {
    /// Where the model comes from: `hf://owner/name`, `oci://registry/repository@sha256:…` (or `:tag`),
    /// `s3://bucket/prefix`, or `https://…` for a single file.
    #[arg(long)]
    pub source: String,

    /// The branch, tag or commit of an `hf://` source.
    #[arg(long, default_value = "main")]
    pub revision: String,

    /// The base URL of a mirror of the hub for `hf://` sources, or of object storage that speaks S3 for `s3://`
    /// sources. Without it: the public hub, or AWS.
    #[arg(long)]
    pub endpoint: Option<String>,

    /// The region of an `s3://` source; without it the one that the endpoint's name has, or the bucket tells.
    #[arg(long, env = "AWS_REGION")]
    pub region: Option<String>,

    /// A glob for the files of an `hf://`, `oci://` or `s3://` source that belong to the model; may be repeated.
    /// Without it: weights, tokenizer, configuration, template and licence files at the top level.
    #[arg(long = "file", value_name = "GLOB")]
    pub files: Vec<String>,

    /// The digest that the model must have: `sha256:` and 64 hex digits.
    #[arg(long)]
    pub digest: Digest,

    /// The folder of the store.
    #[arg(long)]
    pub store: PathBuf,

    /// How the weights are stored: only files of this format are fetched where no glob says otherwise.
    #[arg(long, value_enum, default_value_t)]
    pub format: FormatChoice,

    /// A file with certificates (PEM) that the source's certificate may come from, beside the usual ones.
    #[arg(long, value_name = "FILE")]
    pub ca_bundle: Option<PathBuf>,

    /// The proxy for https sources, such as `http://proxy:3128`.
    #[arg(long, value_name = "URL", env = "HTTPS_PROXY", hide_env_values = true)]
    pub https_proxy: Option<String>,

    /// Hosts that are reached without the proxy, separated by commas.
    #[arg(long, value_name = "HOSTS", env = "NO_PROXY")]
    pub no_proxy: Option<String>,

    /// Credentials for the source.
    #[command(flatten)]
    pub credentials: CredentialArgs,

    /// The port of the status page.
    #[arg(long, default_value_t = 9090)]
    pub admin_port: u16,

    /// The address of the status page.
    #[arg(long, default_value = "0.0.0.0")]
    pub host: IpAddr,

    /// Who this process is.
    #[command(flatten)]
    pub identity: Identity,
}

/// Credentials for the source, sent to its host and to no other. From the environment, since arguments can be seen by
/// everybody on a machine. Names that end in lower case are keys of a Secret.
#[derive(Clone, Default, ClapArgs)]
pub struct CredentialArgs {
    /// Refuse to start without credentials.
    #[arg(id = "need_credentials", long = "credentials", hide = true)]
    pub required: bool,

    /// A token.
    #[arg(long, hide = true, env = "ESCADRE_SOURCE_TOKEN", hide_env_values = true)]
    pub token: Option<String>,

    /// A token, from a Secret.
    #[arg(long, hide = true, env = "ESCADRE_SECRET_token", hide_env_values = true)]
    pub secret_token: Option<String>,

    /// A user name, from a Secret.
    #[arg(long, hide = true, env = "ESCADRE_SECRET_username", hide_env_values = true)]
    pub secret_username: Option<String>,

    /// A password, from a Secret.
    #[arg(long, hide = true, env = "ESCADRE_SECRET_password", hide_env_values = true)]
    pub secret_password: Option<String>,

    /// Logins for registries, from a Secret of the type `kubernetes.io/dockerconfigjson`.
    #[arg(long, hide = true, env = "ESCADRE_SECRET_.dockerconfigjson", hide_env_values = true)]
    pub secret_docker_config: Option<String>,

    /// A file with logins for registries, as `docker login` writes it: `~/.docker/config.json`.
    #[arg(long, value_name = "FILE")]
    pub registry_config: Option<PathBuf>,

    /// Which key of an account of object storage, from a Secret.
    #[arg(long, hide = true, env = "ESCADRE_SECRET_accessKeyId", hide_env_values = true)]
    pub secret_access_key_id: Option<String>,

    /// The secret of that key, from a Secret.
    #[arg(long, hide = true, env = "ESCADRE_SECRET_secretAccessKey", hide_env_values = true)]
    pub secret_secret_access_key: Option<String>,

    /// What a key that expires comes with, from a Secret.
    #[arg(long, hide = true, env = "ESCADRE_SECRET_sessionToken", hide_env_values = true)]
    pub secret_session_token: Option<String>,

    /// The same three, where the usual tools look for them.
    #[arg(long, hide = true, env = "AWS_ACCESS_KEY_ID", hide_env_values = true)]
    pub aws_access_key_id: Option<String>,

    /// The secret of that key.
    #[arg(long, hide = true, env = "AWS_SECRET_ACCESS_KEY", hide_env_values = true)]
    pub aws_secret_access_key: Option<String>,

    /// What a key that expires comes with.
    #[arg(long, hide = true, env = "AWS_SESSION_TOKEN", hide_env_values = true)]
    pub aws_session_token: Option<String>,
}

impl std::fmt::Debug for CredentialArgs {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("CredentialArgs")
            .field("required", &self.required)
            .finish_non_exhaustive()
    }
}

/// How the weights of a model are stored.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum FormatChoice {
    /// Whatever there is.
    #[default]
    Auto,
    /// A folder with `config.json`, a tokenizer and safetensors files.
    Safetensors,
    /// One GGUF file.
    Gguf,
}

impl FormatChoice {
    /// The format that is asked for.
    pub fn wanted(self) -> Option<Format> {
        match self {
            Self::Auto => None,
            Self::Safetensors => Some(Format::Safetensors),
            Self::Gguf => Some(Format::Gguf),
        }
    }
}

/// Arguments of `serve`.
#[derive(Debug, ClapArgs)]
#[group(id = "where", required = true, multiple = false, args = ["store", "model"])]
pub struct ServeArgs {
    /// The folder of a store that `fetch` filled.
    #[arg(long, requires = "digest")]
    pub store: Option<PathBuf>,

    /// A model file (GGUF), or a folder with the files of one model.
    #[arg(long)]
    pub model: Option<PathBuf>,

    /// The digest that the model must have: `sha256:` and 64 hex digits.
    #[arg(long)]
    pub digest: Option<Digest>,

    /// What the model must keep to beside its digest, as a JSON list: signers, licences, chat templates, formats. The operator
    /// writes it from the manifest and from the cluster's policies.
    #[arg(long, value_name = "JSON", default_value = "[]", hide_default_value = true)]
    pub requirements: Requirements,

    /// How the weights must be stored; a model in another format is refused.
    #[arg(long, value_enum, default_value_t)]
    pub format: FormatChoice,

    /// A folder with files that are laid over the model's: `chat_template.jinja`, and beside safetensors
    /// `generation_config.json` and `tokenizer_config.json`. They are not part of the digest.
    #[arg(long, value_name = "DIR")]
    pub overlay: Option<PathBuf>,

    /// The model's name in the API; without it the name of the file or folder.
    #[arg(long)]
    pub served_name: Option<String>,

    /// Another name under which requests may ask for the model. May be repeated.
    #[arg(long = "alias", value_name = "NAME")]
    pub aliases: Vec<String>,

    /// How the vector of a text is made for `/v1/embeddings`; without it as the model's files say.
    #[arg(long, value_enum)]
    pub pooling: Option<Pooling>,

    /// The longest prompt and answer together, in tokens; without it what the model was made for.
    #[arg(long)]
    pub max_context: Option<NonZeroUsize>,

    /// How many requests are answered at the same time; more of them wait.
    #[arg(long, default_value = "16")]
    pub max_concurrency: NonZeroUsize,

    /// How long a request may have to wait for its turn, by how long answers took so far; one that would wait longer is
    /// refused with 429. As many as are answered at the same time may always wait.
    #[arg(long, value_parser = parse_duration, default_value = "60s", value_name = "DURATION")]
    pub max_queue_wait: Duration,

    /// How keys and values are held.
    #[arg(long, value_enum, default_value_t)]
    pub kv_cache_dtype: KvType,

    /// Make weights that are numbers of 16 or 32 bits smaller while they are loaded: half or a quarter of the memory,
    /// and faster on a processor, for a little of the quality. Those that are quantised already stay as they are.
    #[arg(long, value_enum, value_name = "TYPE")]
    pub quantize: Option<Quantize>,

    /// What computes.
    #[arg(long, value_enum, default_value_t)]
    pub device: DeviceChoice,

    /// How long running answers may wait for their next token while prompts are read; without it less than twice as
    /// long as when none are read.
    #[arg(long, value_parser = parse_duration, value_name = "DURATION")]
    pub inter_token_latency: Option<Duration>,

    /// The port of the API; 0 is any free one, which the log names.
    #[arg(long, default_value_t = 8080)]
    pub port: u16,

    /// The port of probes, status and metrics.
    #[arg(long, default_value_t = 9090)]
    pub admin_port: u16,

    /// The address of both ports; 0.0.0.0 with `--store` and 127.0.0.1 with `--model`.
    #[arg(long)]
    pub host: Option<IpAddr>,

    /// How long to go on accepting connections after a SIGTERM, while endpoints are updated; 5s with `--store`.
    #[arg(long, value_parser = parse_duration, value_name = "DURATION")]
    pub endpoint_delay: Option<Duration>,

    /// How long open requests may take to finish after that.
    #[arg(long, value_parser = parse_duration, default_value = "120s", value_name = "DURATION")]
    pub drain_timeout: Duration,

    /// The largest request body, in bytes.
    #[arg(long, default_value_t = 8 << 20)]
    pub max_body_bytes: usize,

    /// The most connections at the same time; more of them wait to be accepted.
    #[arg(long, default_value = "1024")]
    pub max_connections: NonZeroUsize,

    /// Who may ask.
    #[command(flatten)]
    pub access: AccessArgs,

    /// Where spans go.
    #[command(flatten)]
    pub tracing: TracingArgs,

    /// Worker threads for the arithmetic; without it what the container may use.
    #[arg(long)]
    pub threads: Option<NonZeroUsize>,

    /// Memory that may be used, in bytes; without it the container's limit.
    #[arg(long)]
    pub memory_limit: Option<u64>,

    /// Who this process is.
    #[command(flatten)]
    pub identity: Identity,
}

/// Who may ask, and how much.
#[derive(Debug, Default, ClapArgs)]
pub struct AccessArgs {
    /// A folder with the API keys, as a Secret is mounted: each file is one client, its name that of the client, its content
    /// the key, or `sha256:` and the SHA-256 of the key in hex. Edits take effect within seconds.
    #[arg(long, value_name = "DIR")]
    pub api_keys: Option<PathBuf>,

    /// A folder with `tls.crt` and `tls.key`, as a Secret of the type `kubernetes.io/tls` is mounted: the API is served over TLS.
    /// Edits take effect within seconds, for new connections. The port of probes stays as it is.
    #[arg(long, value_name = "DIR")]
    pub tls: Option<PathBuf>,

    /// Whether callers without a key are refused; without it they are as soon as there is `--api-keys`. A wrong key is always
    /// refused.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", requires = "api_keys")]
    pub require_key: Option<bool>,

    /// A folder with the limits of each client, which are followed: the files `requests-per-minute` and `tokens-per-minute`, each
    /// with a number; one that is empty or not there is no limit.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["requests_per_minute", "tokens_per_minute"])]
    pub limits: Option<PathBuf>,

    /// How many requests each client may make in a minute; those without a key are one client.
    #[arg(long, value_name = "N")]
    pub requests_per_minute: Option<NonZeroU32>,

    /// How many tokens of prompts and answers each client may use in a minute; those without a key are one client.
    #[arg(long, value_name = "N")]
    pub tokens_per_minute: Option<NonZeroU32>,
}

/// Where spans of requests go.
#[derive(Debug, ClapArgs)]
pub struct TracingArgs {
    /// The base URL of an OpenTelemetry collector, to which spans of requests are sent by OTLP over HTTP: `/v1/traces` is
    /// appended. They never hold prompts or answers. Without it there are none.
    #[arg(
        long,
        value_name = "URL",
        env = "OTEL_EXPORTER_OTLP_ENDPOINT",
        hide_env_values = true
    )]
    pub otlp_endpoint: Option<String>,

    /// The whole URL to which spans are sent.
    #[arg(
        long,
        hide = true,
        env = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
        hide_env_values = true
    )]
    pub otlp_traces_endpoint: Option<String>,

    /// The share of requests that have a span, from 0 to 1. A request that names its trace in `traceparent` has one when
    /// that trace is sampled.
    #[arg(long, value_parser = parse_rate, default_value = "1", value_name = "RATE")]
    pub trace_sampling: f64,
}

/// A number from 0 to 1.
fn parse_rate(text: &str) -> Result<f64, String> {
    let rate = text.parse().ok().filter(|rate| (0.0..=1.0).contains(rate));
    rate.ok_or_else(|| "write a number from 0 to 1, such as 0.1".to_owned())
}

/// A length of time with its unit, such as `500ms`, `30s` or `2m`.
fn parse_duration(text: &str) -> Result<Duration, String> {
    let hint = "write a number and a unit, such as 500ms, 30s or 2m";
    let signed: jiff::SignedDuration = text.parse().map_err(|_| hint.to_owned())?;
    Duration::try_from(signed).map_err(|_| hint.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn parse(line: &str) -> Result<Args, clap::Error> {
        Args::try_parse_from(std::iter::once("escadre-runtime").chain(line.split_whitespace()))
    }

    #[test]
    fn command_line_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn command_lines_of_the_operator_are_understood() {
        let fetch = format!(
            "fetch --source=hf://a/b --revision=v2 --endpoint=http://mirror:8000 --file=*.gguf --digest={DIGEST} --store=/models --format=gguf --ca-bundle=/ca-bundle/ca.crt --credentials"
        );
        let Command::Fetch(args) = parse(&fetch).unwrap().command else {
            panic!("not a fetch")
        };
        assert_eq!(
            (args.files.as_slice(), args.revision.as_str()),
            (["*.gguf".to_owned()].as_slice(), "v2")
        );
        let serve = format!(
            "serve --store=/models --digest={DIGEST} --served-name=m --max-context=512 --max-concurrency=2 --endpoint-delay=5s --drain-timeout=90s --format=safetensors --overlay=/overlay --api-keys=/access/keys --require-key=false --limits=/access/limits --tls=/access/tls --otlp-endpoint=http://collector:4318 --trace-sampling=0.25 --threads=3 --log=debug"
        );
        let Command::Serve(args) = parse(&serve).unwrap().command else {
            panic!("not a serve")
        };
        assert_eq!(args.format.wanted(), Some(Format::Safetensors));
        assert_eq!(args.endpoint_delay, Some(Duration::from_secs(5)));
        assert_eq!(args.drain_timeout, Duration::from_secs(90));
        assert_eq!(args.tracing.otlp_endpoint.as_deref(), Some("http://collector:4318"));
        assert!((args.tracing.trace_sampling - 0.25).abs() < f64::EPSILON);
    }

    #[test]
    fn what_a_model_is_verified_against_can_be_combined() {
        for line in [
            format!("verify --model=m --digest={DIGEST}"),
            format!("verify --model=m --key=k --digest={DIGEST} --signature=s --ignore-path=a --ignore-path=b --json"),
            "verify --model=m --ca=c --ignore-unsigned-files".to_owned(),
            "verify --model=m --trusted-root=r --identity=i --issuer=u --subset".to_owned(),
            "sign --model=m --key=k --signature=s --ignore-path=a".to_owned(),
        ] {
            assert!(parse(&line).is_ok(), "{line}");
        }
    }

    #[test]
    fn contradictory_command_lines_are_usage_errors() {
        for line in [
            "serve",
            "serve --store=/models",
            &format!("serve --store=/models --model=m.gguf --digest={DIGEST}"),
            "serve --model=m.gguf --max-context=0",
            "serve --model=m.gguf --drain-timeout=5",
            "serve --model=m.gguf --drain-timeout=-5s",
            "serve --model=m.gguf --digest=sha256:12",
            "serve --model=m.gguf --require-key",
            "serve --model=m.gguf --api-keys=/keys --require-key=perhaps",
            "serve --model=m.gguf --requests-per-minute=0",
            "serve --model=m.gguf --trace-sampling=1.5",
            "serve --model=m.gguf --trace-sampling=-1",
            "serve --model=m.gguf --trace-sampling=NaN",
            "serve --model=m.gguf --limits=/limits --tokens-per-minute=5",
            "fetch --source=hf://a/b --store=/models",
            "verify --model=m",
            "verify --model=m --signature=s",
            "verify --model=m --key=k --ca=c",
            "verify --model=m --trusted-root=r --identity=i",
            "verify --model=m --key=k --identity=i --issuer=u",
            "verify --model=m --digest=sha256:12",
            &format!("verify --model=m --digest={DIGEST} --ignore-path=x"),
            "verify --model=m --key=k --subset --ignore-unsigned-files",
            "sign --model=m",
        ] {
            assert_eq!(parse(line).unwrap_err().exit_code(), 2, "{line}");
        }
    }
}
