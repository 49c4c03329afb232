//! The syntax of names, labels and ports.

/// A name such as `web-1.example`: of a subdomain, as RFC 1123 has it.
pub fn subdomain(name: &str) -> Result<(), &'static str> {
    let fits = (1..=253).contains(&name.len()) && name.split('.').all(is_label);
    fits.then_some(()).ok_or(
        "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', \
         and must start and end with an alphanumeric character, and be no more than 253 characters",
    )
}

/// A name such as `web-1`: of one label, as RFC 1123 has it.
pub fn dns_label(name: &str) -> Result<(), &'static str> {
    (name.len() <= 63 && is_label(name)).then_some(()).ok_or(
        "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', \
         and must start and end with an alphanumeric character, and be no more than 63 characters",
    )
}

/// A name such as `web-1` that begins with a letter, as services need it (RFC 1035).
pub fn service_name(name: &str) -> Result<(), &'static str> {
    let fits = dns_label(name).is_ok() && name.starts_with(|c: char| c.is_ascii_lowercase());
    fits.then_some(()).ok_or(
        "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic \
         character, and end with an alphanumeric character, and be no more than 63 characters",
    )
}

fn is_label(label: &str) -> bool {
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    label.starts_with(inner) && label.ends_with(inner) && label.chars().all(|c| inner(c) || c == '-')
}

/// A label's or annotation's key: `[prefix/]name`.
pub fn label_key(key: &str) -> Result<(), &'static str> {
    let (prefix, name) = key.split_once('/').map_or((None, key), |(p, n)| (Some(p), n));
    if let Some(prefix) = prefix
        && subdomain(prefix).is_err()
    {
        return Err("prefix part a lowercase RFC 1123 subdomain must be before the slash");
    }
    (!name.is_empty() && is_value(name)).then_some(()).ok_or(
        "name part must consist of alphanumeric characters, '-', '_' or '.', must start and end with an \
         alphanumeric character, and be no more than 63 characters",
    )
}

/// A label's value.
pub fn label_value(value: &str) -> Result<(), &'static str> {
    (value.is_empty() || is_value(value)).then_some(()).ok_or(
        "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', must start \
         and end with an alphanumeric character, and be no more than 63 characters",
    )
}

fn is_value(text: &str) -> bool {
    text.len() <= 63
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.ends_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
}

/// A port's name: at most 15 characters, with a letter.
pub fn port_name(name: &str) -> Result<(), &'static str> {
    let fits =
        name.len() <= 15 && is_label(name) && !name.contains("--") && name.contains(|c: char| c.is_ascii_lowercase());
    fits.then_some(()).ok_or(
        "must be no more than 15 characters, contain only lower case alphanumeric characters or '-', with at least \
         one letter, without consecutive hyphens, and not begin or end with '-'",
    )
}

/// The name of an environment variable.
pub fn environment(name: &str) -> Result<(), &'static str> {
    let fits = !name.is_empty() && name.chars().all(|c| (' '..='~').contains(&c) && c != '=');
    fits.then_some(()).ok_or("an environment variable name must consist of printable ASCII characters except '='")
}

/// A key of a ConfigMap or Secret.
pub fn data_key(key: &str) -> Result<(), &'static str> {
    let fits = (1..=253).contains(&key.len())
        && key != "."
        && !key.starts_with("..")
        && key.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'));
    fits.then_some(()).ok_or("a valid config key must consist of alphanumeric characters, '-', '_' or '.'")
}

/// Five characters that make a generated name new, without vowels, so that they spell nothing.
pub fn suffix() -> String {
    const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let bytes = uuid::Uuid::new_v4().into_bytes();
    // The first six bytes of such an id are random altogether.
    bytes[..5].iter().map(|b| char::from(ALPHABET[usize::from(*b) % ALPHABET.len()])).collect()
}
