//! An API server of the test's own, which does on demand what a real one does not. Also used by the end-to-end tests.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use serde_json::{Value, json};

/// How it answers from now on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Mode {
    /// As it should.
    Well,
    /// It takes connections and says nothing.
    Hang,
    /// It sends the answer a byte at a time, with pauses.
    Drip,
    /// Requests below this path get this status.
    Refuse(&'static str, u16),
    /// It sends this instead of an answer's JSON.
    Say(&'static str),
    /// It breaks connections off within the answer.
    Break,
}

#[derive(Debug)]
struct State {
    mode: Mode,
    version: u64,
    /// Events after this version are kept.
    oldest: u64,
    events: Vec<(u64, String)>,
    pods: BTreeMap<String, Value>,
    /// Metadata of everything else, by path.
    others: BTreeMap<String, Value>,
    token: Option<String>,
    requests: Vec<String>,
    /// Watches of an earlier round end: abruptly if the second says so.
    round: (u64, bool),
    stopped: bool,
}

#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    shared: Arc<(Mutex<State>, Condvar)>,
}

impl Server {
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let meta = |name: &str, uid: &str, labels: Value| json!({"metadata": {"name": name, "uid": uid, "labels": labels}});
        let others = BTreeMap::from([
            ("/api/v1/namespaces/kube-system".to_owned(), meta("kube-system", "cluster-1", json!({}))),
            ("/api/v1/nodes/n1".to_owned(), meta("n1", "node-1", json!({"pool": "edge"}))),
        ]);
        let state = State {
            mode: Mode::Well,
            version: 100,
            oldest: 0,
            events: Vec::new(),
            pods: BTreeMap::new(),
            others,
            token: None,
            requests: Vec::new(),
            round: (0, false),
            stopped: false,
        };
        let shared = Arc::new((Mutex::new(state), Condvar::new()));
        let serving = Arc::clone(&shared);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if serving.0.lock().unwrap().stopped {
                    return;
                }
                let shared = Arc::clone(&serving);
                std::thread::spawn(move || drop(serve(&stream, &shared)));
            }
        });
        Self { address, shared }
    }

    /// A kubeconfig that leads here.
    pub(crate) fn kubeconfig(&self, token_file: &std::path::Path) -> String {
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: c\ncontexts: [{{name: c, context: {{cluster: k, user: u}}}}]\n\
             clusters: [{{name: k, cluster: {{server: \"http://{}\"}}}}]\nusers: [{{name: u, user: {{tokenFile: {}}}}}]\n",
            self.address,
            token_file.display()
        )
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let changed = change(&mut self.shared.0.lock().unwrap());
        self.shared.1.notify_all();
        changed
    }

    pub(crate) fn behave(&self, mode: Mode) {
        self.change(|state| state.mode = mode);
    }

    /// The one token that counts from now on.
    pub(crate) fn token(&self, token: &str) {
        self.change(|state| state.token = Some(token.to_owned()));
    }

    /// Adds or changes a pod, known by its uid.
    pub(crate) fn put(&self, mut pod: Value) {
        self.change(|state| {
            state.version += 1;
            pod["metadata"]["resourceVersion"] = json!(state.version.to_string());
            let uid = pod["metadata"]["uid"].as_str().unwrap().to_owned();
            let kind = if state.pods.contains_key(&uid) { "MODIFIED" } else { "ADDED" };
            state.events.push((state.version, json!({"type": kind, "object": pod}).to_string()));
            state.pods.insert(uid, pod);
        });
    }

    pub(crate) fn delete(&self, uid: &str) {
        self.change(|state| {
            state.version += 1;
            let mut pod = state.pods.remove(uid).unwrap();
            pod["metadata"]["resourceVersion"] = json!(state.version.to_string());
            state.events.push((state.version, json!({"type": "DELETED", "object": pod}).to_string()));
        });
    }

    /// A pod goes, and no event of it is kept.
    pub(crate) fn delete_unseen(&self, uid: &str) {
        self.change(|state| {
            state.version += 1;
            state.pods.remove(uid).unwrap();
        });
    }

    /// Sends a line to all who watch, whatever it is.
    pub(crate) fn say(&self, line: &str) {
        self.change(|state| {
            state.version += 1;
            state.events.push((state.version, line.to_owned()));
        });
    }

    /// A bookmark at the present version.
    pub(crate) fn bookmark(&self) {
        self.change(|state| {
            state.version += 1;
            let version = state.version.to_string();
            let object = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"resourceVersion": version}});
            state.events.push((state.version, json!({"type": "BOOKMARK", "object": object}).to_string()));
        });
    }

    /// What came before is forgotten: who resumes from it is told 410.
    pub(crate) fn compact(&self) {
        self.change(|state| {
            state.version += 1;
            state.oldest = state.version;
            state.events.clear();
        });
    }

    /// Ends all watches, abruptly or in order.
    pub(crate) fn end_watches(&self, abruptly: bool) {
        self.change(|state| state.round = (state.round.0 + 1, abruptly));
    }

    /// Metadata that is answered at that path.
    pub(crate) fn object(&self, path: &str, metadata: &Value) {
        self.change(|state| state.others.insert(path.to_owned(), json!({"metadata": metadata})));
    }

    /// Requests since the last call: `<path>?<query>`.
    pub(crate) fn requests(&self) -> Vec<String> {
        self.change(|state| std::mem::take(&mut state.requests))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.change(|state| {
            state.stopped = true;
            state.round.0 += 1;
        });
        // The listener looks at its state with the next connection.
        drop(TcpStream::connect(self.address));
    }
}

/// A pod of node `n1`.
pub(crate) fn pod(namespace: &str, name: &str, uid: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": namespace, "name": name, "uid": uid, "managedFields": [{"manager": "x"}]},
        "spec": {"nodeName": "n1", "serviceAccountName": "default", "containers": [{"name": "app", "image": "img:1"}]},
    })
}

fn serve(stream: &TcpStream, shared: &Shared) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream);
    loop {
        let (mut target, mut token) = (String::new(), None);
        loop {
            let mut line = String::new();
            if lines.by_ref().take(64 << 10).read_line(&mut line)? == 0 {
                return Ok(());
            }
            let line = line.trim_end();
            if line.is_empty() {
                break;
            }
            if let Some(rest) = line.strip_prefix("GET ") {
                target = rest.split(' ').next().unwrap().to_owned();
            }
            if let Some((name, value)) = line.split_once(": ")
                && name.eq_ignore_ascii_case("authorization")
            {
                token = value.strip_prefix("Bearer ").map(str::to_owned);
            }
        }
        answer(stream, shared, &target, token.as_deref())?;
    }
}

fn answer(stream: &TcpStream, shared: &Shared, target: &str, token: Option<&str>) -> std::io::Result<()> {
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let parameter = |name: &str| {
        query.split('&').find_map(|one| one.strip_prefix(name)?.strip_prefix('=')).map(str::to_owned)
    };
    let mut state = shared.0.lock().unwrap();
    state.requests.push(target.to_owned());
    let watch = parameter("watch").as_deref() == Some("true");
    if state.token.is_some() && state.token.as_deref() != token {
        return whole(stream, 401, &failure(401), &Mode::Well, shared);
    }
    let mode = state.mode.clone();
    match &mode {
        Mode::Hang => {
            while state.mode == Mode::Hang && !state.stopped {
                state = shared.1.wait(state).unwrap();
            }
            return stream.shutdown(Shutdown::Both);
        }
        Mode::Refuse(below, code) if path.starts_with(below) => {
            return whole(stream, *code, &failure(*code), &Mode::Well, shared);
        }
        Mode::Say(text) => return whole(stream, 200, text, &Mode::Well, shared),
        _ => {}
    }
    if path == "/api/v1/pods" && watch {
        let from: u64 = parameter("resourceVersion").unwrap().parse().unwrap();
        return watched(stream, shared, state, from);
    }
    let text = if path == "/api/v1/pods" {
        let limit: usize = parameter("limit").map_or(usize::MAX, |limit| limit.parse().unwrap());
        let after = parameter("continue").unwrap_or_default();
        let all: Vec<_> = state.pods.range::<String, _>(after..).collect();
        let next = all.get(limit).map(|(uid, _)| (*uid).clone());
        let items: Vec<_> = all.iter().take(limit).map(|(_, pod)| (*pod).clone()).collect();
        let metadata = json!({"resourceVersion": state.version.to_string(), "continue": next});
        Some(json!({"kind": "PodList", "apiVersion": "v1", "metadata": metadata, "items": items}).to_string())
    } else {
        state.others.get(path).map(Value::to_string)
    };
    drop(state);
    match text {
        Some(text) => whole(stream, 200, &text, &mode, shared),
        None => whole(stream, 404, &failure(404), &mode, shared),
    }
}

fn failure(code: u16) -> String {
    json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": "as the test says", "code": code})
        .to_string()
}

type Shared = (Mutex<State>, Condvar);

fn whole(mut stream: &TcpStream, code: u16, text: &str, mode: &Mode, shared: &Shared) -> std::io::Result<()> {
    let head = format!(
        "HTTP/1.1 {code} X\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        text.len()
    );
    match mode {
        Mode::Drip => {
            stream.write_all(head.as_bytes())?;
            for byte in text.bytes() {
                stream.write_all(&[byte])?;
                pause(shared);
            }
            Ok(())
        }
        Mode::Break => {
            stream.write_all(head.as_bytes())?;
            stream.write_all(&text.as_bytes()[..text.len() / 2])?;
            stream.shutdown(Shutdown::Both)
        }
        _ => stream.write_all(&[head.as_bytes(), text.as_bytes()].concat()),
    }
}

/// Between drops; not for long once something changes.
fn pause(shared: &Shared) {
    drop(shared.1.wait_timeout(shared.0.lock().unwrap(), Duration::from_millis(50)).unwrap());
}

fn chunk(mut stream: &TcpStream, text: &str) -> std::io::Result<()> {
    stream.write_all(&[format!("{:x}\r\n", text.len()).as_bytes(), text.as_bytes(), b"\r\n"].concat())
}

/// Sends what comes after `from`, until the round is over.
fn watched<'s>(
    mut stream: &TcpStream,
    shared: &'s Shared,
    mut state: MutexGuard<'s, State>,
    from: u64,
) -> std::io::Result<()> {
    let round = state.round.0;
    let mut sent = from;
    stream.write_all(
        b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n",
    )?;
    loop {
        if sent < state.oldest {
            let gone = json!({"type": "ERROR", "object": {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old"}});
            chunk(stream, &format!("{gone}\n"))?;
            return stream.write_all(b"0\r\n\r\n");
        }
        if state.round.0 != round {
            if state.round.1 || state.stopped {
                return stream.shutdown(Shutdown::Both);
            }
            return stream.write_all(b"0\r\n\r\n");
        }
        let next = state.events.iter().find(|(version, _)| *version > sent).cloned();
        if let Some((version, line)) = next {
            sent = version;
            let dripping = state.mode == Mode::Drip;
            drop(state);
            if dripping {
                // A byte at a time, and never the end of the line.
                for byte in line.chars() {
                    chunk(stream, &byte.to_string())?;
                    pause(shared);
                }
            } else {
                chunk(stream, &format!("{line}\n"))?;
            }
            state = shared.0.lock().unwrap();
            continue;
        }
        state = shared.1.wait(state).unwrap();
    }
}
