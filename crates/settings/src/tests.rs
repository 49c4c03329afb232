use super::value::{self, IpamMode, List, Maybe, Switch};
use super::{Error, docs, from_args, load};
use clap::{Parser, Subcommand};
use ipnet::IpNet;
use std::ffi::OsString;
use std::path::PathBuf;

#[derive(clap::Args, Debug)]
struct Settings {
    /// Name of this.
    #[arg(long, default_value = "", value_parser = value::text)]
    name: String,
    /// Largest packet.
    #[arg(long, value_name = "BYTES", default_value = "", value_parser = value::optional(value::within(576..=65_535_u32)))]
    test_mtu: Maybe<u32>,
    /// Turned on or off.
    #[arg(long, value_name = "BOOL", default_value = "true", value_parser = value::switch)]
    test_switch: Switch,
    /// Where pods get their addresses [default: it depends].
    #[arg(long, value_name = "MODE", default_value = "cluster-pool", value_parser = value::one_of(IpamMode::ALL))]
    ipam: IpamMode,
    /// Several.
    #[arg(long, value_name = "CIDR,...", default_value = "", value_parser = value::prefixes)]
    prefixes: List<IpNet>,
    /// JSON.
    #[arg(long, value_name = "JSON", default_value = "", value_parser = value::text)]
    plugin: String,
    /// File.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

#[derive(Parser, Debug)]
struct Program {
    #[command(flatten)]
    settings: Settings,
    #[command(subcommand)]
    command: Option<Act>,
}

#[derive(Subcommand, Clone, Copy, PartialEq, Debug)]
enum Act {
    Check,
}

fn os(args: &[&str]) -> Vec<OsString> {
    std::iter::once("program").chain(args.iter().copied()).map(Into::into).collect()
}

fn program(args: &[&str]) -> Result<Settings, Error> {
    from_args(os(args))
}

fn refused(args: &[&str]) -> String {
    program(args).expect_err("refused").to_string()
}

struct File(tempfile::TempDir);

impl File {
    fn new(text: &str) -> Self {
        let dir = tempfile::tempdir().expect("directory");
        std::fs::write(dir.path().join("p.yaml"), text).expect("file");
        Self(dir)
    }

    fn path(&self) -> String {
        self.0.path().join("p.yaml").to_str().expect("UTF-8").to_owned()
    }
}

#[test]
fn a_flag_beats_the_file_which_beats_the_default() {
    let file = File::new(
        "name: 0123\ntest-mtu: 1400\nipam: delegated\nprefixes: [10.0.0.0/8, fd00::/64]\nplugin: {type: x}\ntest-switch: false\n",
    );
    let found = program(&["--test-mtu", "9000", "--config", &file.path()]).expect("good");
    assert_eq!((found.name.as_str(), found.test_mtu, found.ipam), ("0123", Some(9000), IpamMode::Delegated));
    assert_eq!((found.prefixes.len(), found.plugin.as_str(), found.test_switch), (2, r#"{"type":"x"}"#, false));
    let whole: Program = load(os(&["--test-mtu", "9000", "--config", &file.path(), "check"])).expect("good");
    assert_eq!((whole.command, whole.settings.ipam), (Some(Act::Check), IpamMode::Delegated));
    let found = program(&[]).expect("good");
    assert_eq!((found.test_mtu, found.test_switch, found.ipam), (None, true, IpamMode::ClusterPool));
    // What is empty or null is as if it were not there.
    let file = File::new("test-mtu: \nprefixes: []\n");
    assert_eq!(program(&["--config", &file.path()]).expect("good").test_mtu, None);
    assert!(program(&["--config", &File::new("").path()]).is_ok());
}

#[test]
fn the_environment_is_between_flag_and_file() {
    // The only test that reads this variable sets it in a program of its own.
    let file = File::new("name: file\ntest-mtu: 1400\n");
    let inner = std::env::var_os("WEFT_TEST_MTU").is_some();
    if !inner {
        let me = std::env::current_exe().expect("this program");
        let name = "tests::the_environment_is_between_flag_and_file";
        let output = std::process::Command::new(me).args([name, "--exact"]).env("WEFT_TEST_MTU", "1500").output();
        let output = output.expect("starts");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        return;
    }
    let found = program(&["--config", &file.path()]).expect("good");
    assert_eq!((found.name.as_str(), found.test_mtu), ("file", Some(1500)));
    let found = program(&["--config", &file.path(), "--test-mtu", "1600"]).expect("good");
    assert_eq!(found.test_mtu, Some(1600));
}

#[test]
fn every_ipam_mode_has_one_name() {
    for (name, mode) in IpamMode::ALL {
        assert_eq!((mode.name(), serde_json::to_value(mode).expect("text")), (*name, (*name).into()));
    }
}

#[test]
fn an_error_names_setting_expectation_and_value() {
    assert_eq!(refused(&["--test-mtu", "100"]), "test-mtu: expected 576 to 65535, found 100");
    assert_eq!(refused(&["--test-mtu=-1"]), "test-mtu: expected 576 to 65535, found -1");
    assert_eq!(refused(&["--test-switch="]), "test-switch: expected `true` or `false`, found nothing");
    assert!(refused(&["--ipam", "dhcp"]).starts_with("ipam: expected `cluster-pool`, `kubernetes`, "));
    assert!(refused(&["--ipam", "dhcp"]).ends_with("`azure-node-subnet` or `delegated`, found dhcp"));
    assert!(matches!(program(&["--no-such-flag"]), Err(Error::Usage(_))));
}

#[test]
fn the_file_is_checked_whole_and_named() {
    for (text, problem) in [
        ("nam: x\n", "unknown setting nam"),
        ("help: true\n", "unknown setting help"),
        ("config: x\n", "unknown setting config"),
        ("test-mtu: big\n", "test-mtu: expected 576 to 65535, found big"),
        ("test-switch: yes\n", "test-switch: expected `true` or `false`, found yes"),
        ("name: 1.10\n", "name: expected a whole number, or text in quotes, found 1.1"),
        ("name: a\nname: b\n", "duplicate"),
        ("- 1\n", "p.yaml"),
        ("name: [\n", "p.yaml"),
    ] {
        let file = File::new(text);
        // The flag takes precedence, and does not hide what is wrong in the file.
        let error = refused(&["--config", &file.path(), "--test-mtu", "1500"]);
        assert!(error.contains(problem) && error.contains("p.yaml") && !error.contains('\n'), "{error}");
    }
    assert!(refused(&["--config", "/nonexistent/p.yaml"]).starts_with("config: cannot read /nonexistent/p.yaml: "));
}

#[test]
fn the_table_has_what_the_definition_has() {
    let table = docs::table::<Settings>();
    let rows: Vec<&str> = table.lines().skip(2).collect();
    assert_eq!(rows.len(), 7, "{table}");
    assert_eq!(rows[1], "| `--test-mtu` | 576 to 65535 | none | Largest packet |");
    assert_eq!(rows[2], "| `--test-switch` | `true` or `false` | `true` | Turned on or off |");
    assert!(rows[3].ends_with("or `delegated` | it depends | Where pods get their addresses |"));

    let file = File::new("before\n<!-- settings: program -->\n<!-- end -->\nafter\n");
    let path = PathBuf::from(file.path());
    let error = docs::compare(&path, "program", &table).expect_err("stale");
    assert!(error.contains("cargo xtask docs") && error.contains(rows[0].trim()), "{error}");
    assert!(docs::compare(&path, "other", &table).expect_err("no such place").contains("<!-- settings: other -->"));
    std::fs::write(&path, format!("<!-- settings: program -->\n{table}<!-- end -->\n")).expect("file");
    assert_eq!(docs::compare(&path, "program", &table), Ok(()));
}
