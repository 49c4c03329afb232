//! Names of network namespaces. As root; each test in a mount namespace of its own, which ends with its thread.

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use std::fs;
use weft_sys::netns;

fn mounted(source: &str, kind: Option<&str>, flags: MsFlags) {
    mount(Some(source), netns::DIR, kind, flags, None::<&str>).expect("mount");
}

/// Runs `test` where only it sees what is mounted, on an empty directory of namespaces.
fn apart(test: impl FnOnce() + Send + 'static) {
    let thread = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNS).expect("a mount namespace; is this root?");
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>).expect("make all private");
        fs::create_dir_all(netns::DIR).expect("the directory");
        mounted("tmpfs", Some("tmpfs"), MsFlags::empty());
        test();
    });
    thread.join().expect("the test");
}

fn mounts_of(name: &str) -> usize {
    let all = fs::read_to_string("/proc/thread-self/mountinfo").expect("the mounts");
    all.lines().filter(|line| line.contains(&format!("/{name} "))).count()
}

#[test]
fn a_name_comes_and_goes() {
    apart(|| {
        netns::create("a").expect("made");
        netns::create("a").expect("made already");
        assert!(netns::exists("a"));
        assert_eq!(mounts_of("a"), 1);
        netns::remove("a").expect("removed");
        netns::remove("a").expect("removed already");
        assert_eq!((netns::exists("a"), netns::list(), mounts_of("a")), (false, Vec::new(), 0));
    });
}

/// As `ip netns add` does when it is the first since the machine came up; here even twice.
#[test]
fn a_name_goes_when_its_directory_was_mounted_upon_itself() {
    apart(|| {
        netns::create("a").expect("made");
        netns::create("b").expect("made");
        mounted(netns::DIR, None, MsFlags::MS_BIND | MsFlags::MS_REC);
        mount(None::<&str>, netns::DIR, None::<&str>, MsFlags::MS_REC | MsFlags::MS_SHARED, None::<&str>)
            .expect("shared");
        mounted(netns::DIR, None, MsFlags::MS_BIND | MsFlags::MS_REC);
        assert!(mounts_of("a") > 1);
        netns::create("c").expect("made");
        for name in ["a", "c"] {
            netns::remove(name).expect("removed");
            assert_eq!((netns::exists(name), mounts_of(name)), (false, 0));
        }
        assert!(netns::exists("b"), "what else is there stays");
        assert_eq!(netns::list(), ["b"]);
    });
}
