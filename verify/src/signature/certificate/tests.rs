//! Each rule about chains: one that breaks it is refused, and the same chain without the fault is accepted.

use super::*;
use rcgen::{
    BasicConstraints as Constraints, CertificateParams, CertifiedIssuer, CustomExtension, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PKCS_ED25519,
};

type Authority = CertifiedIssuer<'static, KeyPair>;

fn params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = rcgen::date_time_ymd(2025, 1, 1);
    params.not_after = rcgen::date_time_ymd(2030, 1, 1);
    params
}

fn authority_params(name: &str) -> CertificateParams {
    let mut params = params(name);
    params.is_ca = IsCa::Ca(Constraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params
}

fn leaf_params() -> CertificateParams {
    let mut params = params("signer");
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::CodeSigning];
    params
}

fn key() -> KeyPair {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap()
}

fn root() -> Authority {
    CertifiedIssuer::self_signed(authority_params("root"), key()).unwrap()
}

fn below(issuer: &Authority, params: CertificateParams) -> Authority {
    CertifiedIssuer::signed_by(params, key(), issuer).unwrap()
}

fn leaf(issuer: &Authority, params: impl std::borrow::Borrow<CertificateParams>) -> Vec<u8> {
    params.borrow().signed_by(&key(), issuer).unwrap().der().to_vec()
}

fn trusts(roots: &[&Authority]) -> Authorities {
    let pem: String = roots.iter().map(|root| root.pem()).collect();
    Authorities::from_pem(pem.as_bytes()).unwrap()
}

/// The middle of 2027.
fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_hours(504_000)
}

fn check(chain: &[Vec<u8>], authorities: &Authorities) -> Result<Leaf, String> {
    check_chain(chain.to_vec(), authorities, now()).map_err(|refusal| {
        assert_eq!(refusal.reason, Reason::CertificateInvalid);
        refusal.to_string()
    })
}

fn fault(chain: &[Vec<u8>], authorities: &Authorities) -> String {
    check(chain, authorities).map(|_| ()).unwrap_err()
}

#[test]
fn chains_of_two_to_four_are_accepted_and_longer_ones_refused() {
    let root = root();
    let trusted = trusts(&[&root]);
    let found = check(&[leaf(&root, leaf_params())], &trusted).unwrap();
    assert_eq!(found.subject, "CN=signer");
    let first = below(&root, authority_params("first"));
    let second = below(&first, authority_params("second"));
    let der = |authority: &Authority| authority.der().to_vec();
    assert!(check(&[leaf(&first, leaf_params()), der(&first)], &trusted).is_ok());
    // In any order, and with others beside them.
    let other = self::root();
    assert!(
        check(
            &[leaf(&second, leaf_params()), der(&first), der(&other), der(&second)],
            &trusted
        )
        .is_ok()
    );
    let third = below(&second, authority_params("third"));
    let fault = fault(
        &[leaf(&third, leaf_params()), der(&first), der(&second), der(&third)],
        &trusted,
    );
    assert!(fault.contains("more than 4"), "{fault}");
    // Who trusts an authority further down needs no more.
    assert!(check(&[leaf(&third, leaf_params()), der(&third)], &trusts(&[&second])).is_ok());
}

#[test]
fn chain_that_leads_to_nobody_is_refused() {
    let (root, other) = (root(), root());
    let chain = [leaf(&root, leaf_params())];
    assert!(fault(&chain, &trusts(&[&other])).contains("does not lead to a trusted one"));
    // The bundle's own root is not trusted for being there.
    assert!(check(&[chain[0].clone(), root.der().to_vec()], &trusts(&[&other])).is_err());
    let missing = below(&root, authority_params("first"));
    assert!(check(&[leaf(&missing, leaf_params())], &trusts(&[&root])).is_err());
    assert!(check(&[], &trusts(&[&root])).is_err());
}

#[test]
fn leaf_with_the_name_of_its_issuer_is_accepted() {
    // As in the public vectors: the leaf claims to be an authority as well.
    let root = root();
    let issuer = below(&root, authority_params("same"));
    let mut params = leaf_params();
    params.distinguished_name.push(DnType::CommonName, "same");
    params.is_ca = IsCa::Ca(Constraints::Unconstrained);
    assert!(check(&[leaf(&issuer, params), issuer.der().to_vec()], &trusts(&[&root])).is_ok());
}

#[test]
fn certificates_must_be_valid_now() {
    let root = root();
    for (before, after, word) in [(2028, 2029, "not valid before"), (2025, 2026, "was valid until")] {
        let dated = |mut params: CertificateParams| {
            params.not_before = rcgen::date_time_ymd(before, 1, 1);
            params.not_after = rcgen::date_time_ymd(after, 1, 1);
            params
        };
        let fault_of_leaf = fault(&[leaf(&root, dated(leaf_params()))], &trusts(&[&root]));
        assert!(fault_of_leaf.contains(word), "{fault_of_leaf}");
        let middle = below(&root, dated(authority_params("first")));
        let chain = [leaf(&middle, leaf_params()), middle.der().to_vec()];
        assert!(fault(&chain, &trusts(&[&root])).contains(word));
        let root = CertifiedIssuer::self_signed(dated(authority_params("root")), key()).unwrap();
        assert!(fault(&[leaf(&root, leaf_params())], &trusts(&[&root])).contains(word));
    }
}

#[test]
fn signer_must_be_allowed_to_sign_code() {
    let root = root();
    let trusted = trusts(&[&root]);
    let mut none = leaf_params();
    none.extended_key_usages.clear();
    assert!(fault(&[leaf(&root, none)], &trusted).contains("codeSigning"));
    let mut other = leaf_params();
    other.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    assert!(fault(&[leaf(&root, other)], &trusted).contains("codeSigning"));
    let mut usage = leaf_params();
    usage.key_usages = vec![KeyUsagePurpose::KeyAgreement];
    assert!(fault(&[leaf(&root, usage)], &trusted).contains("must not be used for signatures"));
    let mut silent = leaf_params();
    silent.key_usages.clear();
    assert!(check(&[leaf(&root, silent)], &trusted).is_ok());
}

#[test]
fn issuer_must_be_an_authority_for_this() {
    let root = root();
    let trusted = trusts(&[&root]);
    let through = |params: CertificateParams| {
        let middle = below(&root, params);
        fault(&[leaf(&middle, leaf_params()), middle.der().to_vec()], &trusted)
    };
    let mut params = authority_params("first");
    params.is_ca = IsCa::ExplicitNoCa;
    assert!(through(params).contains("not one of an authority"));
    let mut params = authority_params("first");
    params.is_ca = IsCa::NoCa;
    assert!(through(params).contains("not one of an authority"));
    let mut params = authority_params("first");
    params.key_usages = vec![KeyUsagePurpose::CrlSign];
    assert!(through(params).contains("must not issue certificates"));
    let mut params = authority_params("first");
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    assert!(through(params).contains("for signing code"));
    let mut limited = authority_params("root");
    limited.is_ca = IsCa::Ca(Constraints::Constrained(0));
    let limited = CertifiedIssuer::self_signed(limited, key()).unwrap();
    assert!(check(&[leaf(&limited, leaf_params())], &trusts(&[&limited])).is_ok());
    let middle = below(&limited, authority_params("first"));
    let chain = [leaf(&middle, leaf_params()), middle.der().to_vec()];
    assert!(fault(&chain, &trusts(&[&limited])).contains("fewer authorities"));
}

#[test]
fn critical_extension_that_is_not_known_is_refused() {
    let root = root();
    let trusted = trusts(&[&root]);
    let mut unknown = CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 99999, 1], vec![5, 0]);
    let mut params = leaf_params();
    params.custom_extensions = vec![unknown.clone()];
    assert!(check(&[leaf(&root, params.clone())], &trusted).is_ok());
    unknown.set_criticality(true);
    params.custom_extensions = vec![unknown.clone()];
    assert!(fault(&[leaf(&root, params)], &trusted).contains("not known"));
    let mut params = authority_params("first");
    params.custom_extensions = vec![unknown];
    let middle = below(&root, params);
    let chain = [leaf(&middle, leaf_params()), middle.der().to_vec()];
    assert!(fault(&chain, &trusted).contains("not known"));
}

#[test]
fn changed_certificate_is_refused() {
    let root = root();
    let trusted = trusts(&[&root]);
    let good = leaf(&root, leaf_params());
    for at in 0..good.len() {
        let mut changed = good.clone();
        changed[at] ^= 1;
        assert!(check(&[changed], &trusted).is_err(), "byte {at}");
    }
    for length in 0..good.len() {
        assert!(check(&[good[..length].to_vec()], &trusted).is_err(), "{length} bytes");
    }
    assert!(check(&[[good.as_slice(), b"\0"].concat()], &trusted).is_err());
}

#[test]
fn signers_key_must_be_one_that_signs_models() {
    let root = root();
    let ed25519 = KeyPair::generate_for(&PKCS_ED25519).unwrap();
    let certificate = leaf_params().signed_by(&ed25519, &root).unwrap();
    let fault = fault(&[certificate.der().to_vec()], &trusts(&[&root]));
    assert!(fault.contains("signer's key"), "{fault}");
    // An authority may have such a key.
    let root =
        CertifiedIssuer::self_signed(authority_params("root"), KeyPair::generate_for(&PKCS_ED25519).unwrap()).unwrap();
    assert!(check(&[leaf(&root, leaf_params())], &trusts(&[&root])).is_ok());
}

#[test]
fn many_certificates_of_one_name_cost_bounded_time() {
    let others: Vec<_> = (0..15).map(|_| root()).collect();
    let trusted = trusts(&others.iter().collect::<Vec<_>>());
    let mut chain = vec![leaf(&root(), leaf_params())];
    chain.extend(others.iter().map(|other| other.der().to_vec()));
    assert!(check(&chain, &trusted).is_err());
}
