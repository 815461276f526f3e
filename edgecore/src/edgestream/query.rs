//! What the queries of kubectl's requests ask for, in the words of CRI. Names are those of the kubelet
//! (`k8s.io/kubelet/pkg/cri/streaming/remotecommand`, `PodExecOptions` once the API server has passed them on).

use http::StatusCode;
use proto::cri::v1;

use super::Refusal;

#[expect(clippy::struct_excessive_bools, reason = "CRI's own")]
struct Streams {
    stdin: bool,
    stdout: bool,
    stderr: bool,
    tty: bool,
}

fn pairs(query: &str) -> impl Iterator<Item = (String, String)> {
    form_urlencoded::parse(query.as_bytes()).into_owned()
}

fn streams(query: &str) -> Streams {
    let on = |name: &str| pairs(query).any(|(key, value)| key == name && matches!(&*value, "1" | "true"));
    let tty = on("tty");
    // A terminal has one output.
    Streams { stdin: on("input"), stdout: on("output"), stderr: on("error") && !tty, tty }
}

pub(super) fn exec(container_id: String, query: &str) -> Result<v1::ExecRequest, Refusal> {
    let cmd: Vec<String> = pairs(query).filter(|(key, _)| key == "command").map(|(_, value)| value).collect();
    if cmd.is_empty() {
        return Err(bad("there is no command: command= is missing from the query\n".to_owned()));
    }
    let Streams { stdin, stdout, stderr, tty } = streams(query);
    Ok(v1::ExecRequest { container_id, cmd, tty, stdin, stdout, stderr })
}

/// Whether there is a terminal, the container's spec says.
pub(super) fn attach(container_id: String, tty: bool, query: &str) -> v1::AttachRequest {
    let Streams { stdin, stdout, stderr, .. } = streams(query);
    v1::AttachRequest { container_id, stdin, tty, stdout, stderr: stderr && !tty }
}

/// Over SPDY there are none here: each stream names its own.
pub(super) fn ports(query: &str) -> Result<Vec<i32>, Refusal> {
    pairs(query)
        .filter(|(key, _)| matches!(&**key, "port" | "ports"))
        .flat_map(|(_, value)| value.split(',').map(str::to_owned).collect::<Vec<_>>())
        .map(|port| match port.parse::<u16>() {
            Ok(number) if number > 0 => Ok(number.into()),
            _ => Err(bad(format!("port {port:?} is not a number from 1 to 65535\n"))),
        })
        .collect()
}

fn bad(reason: String) -> Refusal {
    Refusal(StatusCode::BAD_REQUEST, reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_becomes_what_the_runtime_is_asked() {
        let asked = exec("c".to_owned(), "command=sh&command=-c&command=echo+a%26b&input=1&output=1&error=1");
        let asked = asked.unwrap();
        assert_eq!(asked.cmd, ["sh", "-c", "echo a&b"]);
        assert!(asked.stdin && asked.stdout && asked.stderr && !asked.tty);
        let terminal = exec("c".to_owned(), "command=sh&output=1&error=1&tty=1").unwrap();
        assert!(terminal.tty && terminal.stdout && !terminal.stderr && !terminal.stdin);
        assert!(exec("c".to_owned(), "output=1").is_err());
        assert!(!attach("c".to_owned(), true, "error=1").stderr);
    }

    #[test]
    fn ports_are_numbers() {
        assert_eq!(ports("port=80&port=8080,53").unwrap(), [80, 8080, 53]);
        assert_eq!(ports("").unwrap(), Vec::<i32>::new());
        for wrong in ["port=0", "port=65536", "port=-1", "port=http"] {
            assert!(ports(wrong).is_err_and(|Refusal(code, _)| code == StatusCode::BAD_REQUEST), "{wrong}");
        }
    }
}
