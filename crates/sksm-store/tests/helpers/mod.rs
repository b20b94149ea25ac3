//! What the tests have in common.
#![allow(dead_code, reason = "each test uses some of it")]

use std::env;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use sksm_store::Store;
use tempfile::TempDir;

/// Says so past the test harness, which hides what a test prints; `cargo xtask test` counts such lines.
pub fn skip(name: &str, reason: &str) {
    // Not by eprintln!(), which the harness keeps to itself.
    let mut stderr = std::io::stderr();
    writeln!(stderr, "\nSKIP store/{name}: {reason}").unwrap();
}

/// A store of its own for a test, in memory.
pub struct Home(TempDir);

impl Home {
    pub fn new() -> Self {
        let dir = tempfile::Builder::new()
            .prefix("sksm-test-")
            .permissions(PermissionsExt::from_mode(0o700))
            .tempdir_in("/dev/shm");
        Home(dir.unwrap())
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    pub fn store(&self) -> Store {
        Store::open_in(self.path()).unwrap()
    }
}

/// Whether this process has been started by `again` for this test.
pub fn in_test(name: &str) -> bool {
    env::var("SKSM_TEST").is_ok_and(|own| own == name)
}

/// The same test once more, in a process of its own, which `in_test` tells; with this store.
pub fn again(name: &str, store: &Path) -> Command {
    let mut command = Command::new(env::current_exe().unwrap());
    command
        .args(["--exact", name, "--nocapture", "--test-threads=1"])
        .env("SKSM_TEST", name)
        .env("SKSM_STORE_DIR", store);
    command
}

/// The same with a file system of its own, of which this user need not be root.
pub fn in_small_file_system(name: &str, options: &str) {
    let dir = tempfile::tempdir().unwrap();
    let script = format!(
        "mount -t tmpfs -o {options} none {0} && SKSM_TEST={name} SKSM_STORE_DIR={0}/store \
         exec {1} --exact {name} --nocapture",
        dir.path().display(),
        env::current_exe().unwrap().display()
    );
    // As root, who may do without one, with all user numbers there are.
    // SAFETY: asks for a number.
    let root = unsafe { libc::geteuid() } == 0;
    let user: &[&str] = if root {
        &[]
    } else {
        &["--user", "--map-root-user"]
    };
    let output = Command::new("unshare")
        .args(user)
        .args(["--mount", "sh", "-c", &script])
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
}

pub struct Child(libc::pid_t);

/// A child that does this and then ends.
pub fn fork(work: impl FnOnce()) -> Child {
    // SAFETY: the child makes simple calls and ends.
    match unsafe { libc::fork() } {
        0 => {
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
            // SAFETY: ends the child.
            unsafe { libc::_exit(i32::from(result.is_err())) }
        }
        pid => Child(pid),
    }
}

impl Child {
    pub fn pid(&self) -> i32 {
        self.0
    }

    pub fn kill(self) {
        // SAFETY: a child that has not been waited for.
        unsafe {
            libc::kill(self.0, libc::SIGKILL);
            libc::waitpid(self.0, std::ptr::null_mut(), 0);
        }
    }

    /// Whether it ended well.
    pub fn wait(self) -> bool {
        let mut status = 0;
        // SAFETY: a child that has not been waited for; writes a status, into ours.
        unsafe { libc::waitpid(self.0, &mut status, 0) };
        libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0
    }
}

/// Takes every lock that publishers take.
pub fn lock_all(file: &std::fs::File) {
    // SAFETY: numbers, for all of which zero is a value.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = libc::F_WRLCK as _;
    let fd = std::os::fd::AsRawFd::as_raw_fd(file);
    // SAFETY: reads one lock, ours.
    assert_eq!(unsafe { libc::fcntl(fd, libc::F_SETLK, &lock) }, 0);
}

/// From now on the kernel refuses this call with this error.
pub fn refuse(call: libc::c_long, errno: i32) {
    filter(call, libc::SECCOMP_RET_ERRNO | errno as u32);
}

/// From now on this is what the call does.
pub fn filter(call: libc::c_long, action: u32) {
    let step = |code: u32, jf, k| libc::sock_filter {
        code: code as u16,
        jt: 0,
        jf,
        k,
    };
    let program = [
        // The number of the call.
        step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0),
        step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 1, call as u32),
        step(libc::BPF_RET | libc::BPF_K, 0, action),
        step(libc::BPF_RET | libc::BPF_K, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog {
        len: program.len() as u16,
        filter: program.as_ptr().cast_mut(),
    };
    // SAFETY: they take numbers, and a program that is valid for reads.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        let mode = libc::SECCOMP_MODE_FILTER;
        // Other threads of the harness wait for this one.
        assert_eq!(libc::prctl(libc::PR_SET_SECCOMP, mode, &program), 0);
    }
}
