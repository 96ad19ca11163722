//! `s3://bucket/prefix`: the objects of a bucket below a prefix, on AWS or on anything that speaks its protocol.
//!
//! Without credentials nothing is signed, and the bucket must be readable by everybody. The crate `rusty_s3` signs and
//! reads listings; every request goes through [`Client`], with the redirects, retries and limits of all sources.

use super::access::{AccessKeys, Credentials};
use super::client::{Authorization, Client};
use super::error::FetchError;
use super::listing::{Content, Listing, MAX_FILES, RemoteFile, Seen, check_count, choose};
use super::{Request, parse_endpoint};
use crate::status::Board;
use globset::GlobSet;
use reqwest::header::HeaderMap;
use rusty_s3::actions::list_objects_v2::{ListObjectsContent, ListObjectsV2};
use rusty_s3::signing::sign;
use rusty_s3::{Bucket, Method, S3Action as _, UrlStyle};
use std::time::{Duration, SystemTime};
use url::Url;

/// The region of buckets that tell none.
const DEFAULT_REGION: &str = "us-east-1";
/// In which header a bucket tells its region.
const REGION_HEADER: &str = "x-amz-bucket-region";
/// How long a signature is good. It is made for each request, which must begin within that time.
const SIGNED_FOR: Duration = Duration::from_mins(15);
/// A listing has about five levels.
const MAX_DEPTH: usize = 32;
/// A server that has so many pages for so few files will never end.
const MAX_PAGES: usize = 100;

/// Signs requests to one bucket.
pub(crate) struct Signer {
    keys: AccessKeys,
    region: String,
}

impl Signer {
    /// The URL with a signature, made now.
    pub(crate) fn sign(&self, url: &Url) -> Option<Url> {
        let mut query: Vec<(String, String)> = url.query_pairs().into_owned().collect();
        query.sort();
        let query = query.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        Some(sign(
            &SystemTime::now().try_into().ok()?,
            Method::Get,
            url.clone(),
            &self.keys.access_key_id,
            &self.keys.secret_access_key,
            self.keys.session_token.as_deref(),
            &self.region,
            SIGNED_FOR.as_secs(),
            query,
            std::iter::empty(),
        ))
    }
}

/// A client for the bucket, and the bucket with its region: the one that was named, or that the endpoint's name has, or
/// that the bucket tells.
pub(crate) async fn open(request: &Request, board: &Board, name: &str) -> Result<(Client, Bucket), FetchError> {
    let endpoint = request.endpoint.as_deref().map(parse_endpoint).transpose()?;
    let named = request
        .region
        .clone()
        .or_else(|| endpoint.as_ref().and_then(region_in_name));
    let region = if let Some(named) = named {
        named
    } else {
        let bucket = bucket(endpoint.as_ref(), name, DEFAULT_REGION)?;
        let nobody = Authorization::Fixed(Credentials::None);
        let client = Client::new(bucket.base_url(), nobody, request, board)?;
        let told = client.header(bucket.base_url(), REGION_HEADER).await;
        told.unwrap_or_else(|| DEFAULT_REGION.to_owned())
    };
    if !is_region(&region) {
        return Err(FetchError::InvalidSource {
            source_text: region.chars().take(100).collect(),
            problem: "its region has not only letters, digits and `-`".to_owned(),
        });
    }
    let bucket = bucket(endpoint.as_ref(), name, &region)?;
    let authorization = match &request.credentials {
        Credentials::Keys(keys) => Authorization::Signed(Signer {
            keys: keys.clone(),
            region,
        }),
        other => Authorization::Fixed(other.clone()),
    };
    let client = Client::new(bucket.base_url(), authorization, request, board)?;
    Ok((client, bucket))
}

/// The bucket as a part of the host's name on AWS, whose certificates reach no further than one dot, and as a part of
/// the path elsewhere, where names of hosts may not lead to it.
fn bucket(endpoint: Option<&Url>, name: &str, region: &str) -> Result<Bucket, FetchError> {
    let invalid = |problem: String| FetchError::InvalidSource {
        source_text: format!("s3://{name}"),
        problem,
    };
    let of_aws = format!("https://s3.{region}.amazonaws.com");
    let (endpoint, style) = if let Some(endpoint) = endpoint {
        (endpoint.clone(), UrlStyle::Path)
    } else {
        let endpoint = Url::parse(&of_aws).map_err(|error| invalid(error.to_string()))?;
        let has_dots = name.contains('.');
        (
            endpoint,
            if has_dots {
                UrlStyle::Path
            } else {
                UrlStyle::VirtualHost
            },
        )
    };
    Bucket::new(endpoint, style, name.to_owned(), region.to_owned()).map_err(|error| invalid(error.to_string()))
}

/// Lists the objects below the prefix that `filter` chooses, or the one object that has the prefix as its whole name.
pub(crate) async fn list(
    client: &Client,
    bucket: &Bucket,
    prefix: &str,
    filter: &GlobSet,
) -> Result<Listing, FetchError> {
    let url = bucket.base_url();
    let is_folder = prefix.is_empty() || prefix.ends_with('/');
    let folder = if is_folder {
        prefix.to_owned()
    } else {
        format!("{prefix}/")
    };
    let objects = list_objects(client, bucket, &folder).await?;
    let mut files = Vec::new();
    if objects.is_empty() && !is_folder {
        let first = list_page(client, bucket, prefix, None, 1).await?.contents.pop();
        let name = prefix.rsplit('/').next().unwrap_or(prefix);
        files.extend(
            first
                .filter(|object| object.key == prefix)
                .map(|object| remote_file(bucket, name, &object)),
        );
    } else {
        let found = objects.iter().filter_map(|object| {
            let name = object.key.strip_prefix(&folder)?;
            // Objects that stand for folders have names that end like this.
            (!name.is_empty() && !name.ends_with('/')).then(|| remote_file(bucket, name, object))
        });
        files = choose(url, "prefix", Seen::default(), found, filter)?;
    }
    if files.is_empty() {
        let problem = format!("the bucket has no object below {prefix:?}; check the prefix");
        return Err(FetchError::unavailable(url, problem));
    }
    Ok(Listing {
        files,
        resolved_revision: None,
    })
}

fn remote_file(bucket: &Bucket, name: &str, object: &ListObjectsContent) -> RemoteFile {
    RemoteFile {
        name: name.to_owned(),
        url: bucket.object_url(&object.key),
        bytes: object.size,
        sha256: None,
        content: Content::File,
        is_immutable: false,
    }
}

async fn list_objects(client: &Client, bucket: &Bucket, prefix: &str) -> Result<Vec<ListObjectsContent>, FetchError> {
    let mut objects = Vec::new();
    let mut token = None;
    for _ in 0..MAX_PAGES {
        let page = list_page(client, bucket, prefix, token.as_deref(), MAX_FILES).await?;
        objects.extend(page.contents);
        check_count(bucket.base_url(), "prefix", objects.len())?;
        token = page.next_continuation_token;
        if token.is_none() {
            return Ok(objects);
        }
    }
    Err(FetchError::unavailable(
        bucket.base_url(),
        "its listing never ends; check the endpoint",
    ))
}

async fn list_page(
    client: &Client,
    bucket: &Bucket,
    prefix: &str,
    token: Option<&str>,
    at_most: usize,
) -> Result<rusty_s3::actions::ListObjectsV2Response, FetchError> {
    let mut action = ListObjectsV2::new(bucket, None);
    action.with_prefix(prefix);
    if let Some(token) = token {
        action.with_continuation_token(token);
    }
    if at_most < MAX_FILES {
        action.with_max_keys(at_most);
    }
    // Not signed yet: the client signs each attempt.
    let url = action.sign(SIGNED_FOR);
    let bytes = client.bytes(&url, &HeaderMap::new()).await?;
    let not_a_listing = |problem: &str| {
        FetchError::unavailable(
            &url,
            format!("the answer is no listing ({problem}); check the endpoint"),
        )
    };
    let text = std::str::from_utf8(&bytes).map_err(|_| not_a_listing("it is not UTF-8"))?;
    if !is_shallow(text) {
        return Err(not_a_listing(
            "its elements are nested too deep, or it has declarations",
        ));
    }
    ListObjectsV2::parse_response(text).map_err(|error| not_a_listing(&error.to_string()))
}

/// Whether a document is plain elements of few levels. The parser goes down level by level, on the stack.
fn is_shallow(text: &str) -> bool {
    let mut depth = 0_usize;
    let mut rest = text;
    while let Some((_, tag)) = rest.split_once('<') {
        if let Some(instruction) = tag.strip_prefix('?') {
            rest = instruction.split_once("?>").map_or("", |(_, rest)| rest);
            continue;
        }
        if tag.starts_with('!') {
            return false;
        }
        let mut quote = None;
        let end = tag.bytes().position(|byte| {
            match (byte, quote) {
                (b'"' | b'\'', None) => quote = Some(byte),
                (_, Some(open)) if byte == open => quote = None,
                _ => {}
            }
            byte == b'>' && quote.is_none()
        });
        let Some(end) = end else { return false };
        let inner = &tag[..end];
        if inner.starts_with('/') {
            depth = depth.saturating_sub(1);
        } else if !inner.ends_with('/') {
            depth += 1;
        }
        if depth > MAX_DEPTH {
            return false;
        }
        rest = &tag[end + 1..];
    }
    true
}

/// The region in the name of an endpoint: `s3.eu-central-1.amazonaws.com`, `s3.fr-par.scw.cloud`.
fn region_in_name(endpoint: &Url) -> Option<String> {
    let mut labels = endpoint.host_str()?.split('.');
    let (first, region) = (labels.next()?, labels.next()?);
    let is_one = first == "s3" && region.contains('-') && labels.count() >= 2 && is_region(region);
    is_one.then(|| region.to_owned())
}

fn is_region(text: &str) -> bool {
    (1..=64).contains(&text.len())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bucket_is_in_the_host_on_aws_and_in_the_path_elsewhere() {
        let endpoint = Url::parse("http://minio.models.svc:9000/sub").unwrap();
        for (endpoint, name, base) in [
            (None, "models", "https://models.s3.eu-north-1.amazonaws.com/"),
            (None, "models.v2", "https://s3.eu-north-1.amazonaws.com/models.v2/"),
            (Some(&endpoint), "models", "http://minio.models.svc:9000/sub/models/"),
        ] {
            assert_eq!(bucket(endpoint, name, "eu-north-1").unwrap().base_url().as_str(), base);
        }
        assert_eq!(bucket(None, "Models_1", "eu-1").unwrap_err().reason(), "InvalidSource");
    }

    #[test]
    fn region_is_read_from_names_that_have_one() {
        for (endpoint, region) in [
            ("https://s3.eu-central-1.amazonaws.com", Some("eu-central-1")),
            ("https://s3.fr-par.scw.cloud", Some("fr-par")),
            ("https://s3.amazonaws.com", None),
            ("https://s3.example.com", None),
            ("https://minio.my-team.example.com", None),
            ("http://127.0.0.1:9000", None),
        ] {
            assert_eq!(
                region_in_name(&Url::parse(endpoint).unwrap()).as_deref(),
                region,
                "{endpoint}"
            );
        }
    }

    #[test]
    fn deep_documents_and_declarations_are_not_parsed() {
        for shallow in [
            "",
            "<?xml version=\"1.0\"?><a x='>'><b/><b/><c>text</c></a>",
            &"<a><b/></a>".repeat(1000),
        ] {
            assert!(is_shallow(shallow), "{shallow}");
        }
        for deep in [
            "<a>".repeat(100_000),
            "<a x=\"/>\">".repeat(100),
            "<a x=\"></a>\">".repeat(100),
            "<?x </a> ?><a>".repeat(100),
            "<!-- </a> --><a>".to_owned(),
            "<!DOCTYPE a>".to_owned(),
            "<a".to_owned(),
        ] {
            assert!(!is_shallow(&deep), "{}", &deep[..20.min(deep.len())]);
        }
    }
}
