//! Short grace periods while a pod's link is made or removed.
//!
//! Attaching or detaching a program waits, with the network configuration locked, until every CPU has passed through a
//! quiescent state: some ten milliseconds on an idle machine, twice for each pod, one pod after the other. The kernel
//! can force that within microseconds (`/sys/kernel/rcu_expedited`), at the price of an interrupt on each CPU. It is a
//! setting of the whole machine, so it is on only while an attachment needs it, and never touched where an
//! administrator has set it.

use std::fs;
use std::path::Path;
use std::sync::Mutex;

const SETTING: &str = "/sys/kernel/rcu_expedited";
/// Exists while an agent has turned the setting on: the next agent undoes what a killed one left.
const MARK: &str = "/run/weft.rcu-expedited";

/// How many want it, and whether the last one has to undo it.
struct Users {
    count: u32,
    ours: bool,
}

static USERS: Mutex<Users> = Mutex::new(Users { count: 0, ours: false });

/// Grace periods are short while one of these lives. Where the setting cannot be written, they are as they are.
#[derive(Debug)]
pub(crate) struct Expedited(());

impl Expedited {
    pub(crate) fn begin() -> Self {
        let mut users = USERS.lock().expect("a panic ends the process");
        if users.count == 0 {
            users.ours = turn_on(Path::new(SETTING), Path::new(MARK));
        }
        users.count += 1;
        Self(())
    }
}

impl Drop for Expedited {
    fn drop(&mut self) {
        let mut users = USERS.lock().expect("a panic ends the process");
        users.count -= 1;
        if users.count == 0 && users.ours {
            turn_off(Path::new(SETTING), Path::new(MARK));
        }
    }
}

/// `true`: it is on because of us, so we have to turn it off.
fn turn_on(setting: &Path, mark: &Path) -> bool {
    match fs::read_to_string(setting) {
        Ok(value) if value.trim() == "0" => {}
        Ok(_) => return mark.exists(),
        Err(_) => return false,
    }
    if let Err(error) = fs::write(mark, "") {
        tracing::debug!(%error, mark = %mark.display(), "grace periods stay long");
        return false;
    }
    match fs::write(setting, "1") {
        Ok(()) => true,
        Err(error) => {
            tracing::debug!(%error, setting = %setting.display(), "grace periods stay long");
            let _ = fs::remove_file(mark);
            false
        }
    }
}

fn turn_off(setting: &Path, mark: &Path) {
    if let Err(error) = fs::write(setting, "0") {
        tracing::warn!(%error, setting = %setting.display(), "grace periods stay short");
        return;
    }
    // Another process may have removed it already.
    let _ = fs::remove_file(mark);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(value: &str) -> (tempfile::TempDir, std::path::PathBuf, std::path::PathBuf) {
        let dir = tempfile::tempdir().expect("a directory");
        let (setting, mark) = (dir.path().join("setting"), dir.path().join("mark"));
        fs::write(&setting, value).expect("a setting");
        (dir, setting, mark)
    }

    #[test]
    fn is_undone() {
        let (_dir, setting, mark) = files("0\n");
        assert!(turn_on(&setting, &mark));
        assert_eq!(fs::read_to_string(&setting).expect("it is there"), "1");
        turn_off(&setting, &mark);
        assert_eq!(fs::read_to_string(&setting).expect("it is there"), "0");
        assert!(!mark.exists());
    }

    #[test]
    fn an_administrators_setting_stays() {
        let (_dir, setting, mark) = files("1\n");
        assert!(!turn_on(&setting, &mark));
    }

    #[test]
    fn what_a_killed_one_left_is_undone() {
        let (_dir, setting, mark) = files("1\n");
        fs::write(&mark, "").expect("a mark");
        assert!(turn_on(&setting, &mark));
    }

    #[test]
    fn a_missing_setting_is_no_error() {
        assert!(!turn_on(Path::new("/nonexistent/setting"), Path::new("/nonexistent/mark")));
    }
}
