//! Read-only mounts. As root; in a mount namespace of its own, which ends with its thread.

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use std::fs;
use std::path::Path;

#[test]
fn what_is_mounted_below_is_read_only_too() {
    let dir = std::env::temp_dir().join(format!("weft-sys-mount-{}", std::process::id()));
    fs::create_dir_all(&dir).expect("temporary directory");
    let place = dir.clone();
    let thread = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNS).expect("a mount namespace; is this root?");
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>).expect("make all private");
        let tmpfs = |place: &Path| {
            fs::create_dir_all(place).expect("a directory");
            mount(Some("tmpfs"), place, Some("tmpfs"), MsFlags::empty(), None::<&str>).expect("mount");
        };
        tmpfs(&place);
        tmpfs(&place.join("below"));
        assert!(weft_sys::mount::make_read_only(&place.join("absent")).is_err());
        weft_sys::mount::make_read_only(&place).expect("made read-only");
        for file in [place.join("file"), place.join("below/file")] {
            let error = fs::write(&file, "x").expect_err("must not be writable");
            assert_eq!(error.raw_os_error(), Some(Errno::EROFS as i32), "{}", file.display());
        }
    });
    let outcome = thread.join();
    fs::remove_dir(&dir).expect("nothing is left in it");
    outcome.expect("the test");
}
