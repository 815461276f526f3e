use std::{fs, path::Path, sync::Arc};

use runtime::tls::Authorities as Cluster;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::edgehub::Renewal;

const NODE: &str = "edge-1";
/// It goes by as soon as nobody has anything to do.
const LONG: Duration = Duration::from_hours(3);

/// A node that has joined, and the cloud's end of its questions.
struct Stage {
    dir: tempfile::TempDir,
    identity: IdentityPaths,
    asked: mpsc::Receiver<Ask>,
    state: watch::Sender<HubState>,
    stop: CancellationToken,
    renewal: Option<Renewal>,
}

impl Stage {
    fn joined(cluster: &Cluster) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let [ca, certificate, key] = ["ca.crt", "node.crt", "node.key"].map(|name| dir.path().join(name));
        let identity = IdentityPaths { ca, certificate, key };
        let (key, csr) = tls::node_csr(NODE).unwrap();
        let certificate = cluster.issuer().sign_node_csr(&csr, NODE, Duration::from_hours(1000)).unwrap();
        identity::save(&identity, cluster.issuer().certificate(), &certificate, &key).unwrap();
        let (asks, asked) = mpsc::channel(4);
        let (state, hub) = watch::channel(HubState::default());
        let (node, clock) = (NODE.to_owned(), Arc::default());
        let renewal = Renewal { node, identity: identity.clone(), asks, hub, clock };
        Self { dir, identity, asked, state, stop: CancellationToken::new(), renewal: Some(renewal) }
    }

    /// Runs the node beside what the cloud does.
    async fn beside(&mut self, cloud: impl AsyncFnOnce(&mut Self)) {
        let (renewal, stop) = (self.renewal.take().unwrap(), self.stop.clone());
        let running = renewal.run(stop.clone());
        let acting = async {
            time::timeout(LONG, cloud(self)).await.expect("the node does not ask");
            stop.cancel();
        };
        let (ended, ()) = tokio::join!(running, acting);
        ended.unwrap();
    }

    fn session(&self) {
        self.state.send_modify(|state| {
            state.connected = true;
            state.sessions += 1;
        });
    }

    async fn question(&mut self) -> (AuthoritiesHeld, oneshot::Sender<Result<Answer, String>>) {
        let Ask { question, answer } = self.asked.recv().await.unwrap();
        let Question::Authorities(held) = question else { panic!("another question: {question:?}") };
        (held, answer)
    }

    async fn certificate_question(&mut self) -> (Vec<u8>, oneshot::Sender<Result<Answer, String>>) {
        let Ask { question, answer } = self.asked.recv().await.unwrap();
        let Question::Certificate(csr) = question else { panic!("another question: {question:?}") };
        (csr.to_vec(), answer)
    }
}

fn told(cluster: &Cluster, within: u32) -> Answer {
    let certificates = cluster.trusted().iter().map(|ca| ca.to_vec().into()).collect();
    Answer::Authorities(Authorities { certificates, renew_within_seconds: within })
}

fn held(cluster: &Cluster, issuer: u64) -> AuthoritiesHeld {
    AuthoritiesHeld { trusted: cluster.ids().to_vec(), issuer }
}

fn signed(cluster: &Cluster, csr: &[u8]) -> Answer {
    let certificate = cluster.issuer().sign_node_csr(csr, NODE, Duration::from_hours(1000)).unwrap();
    Answer::Certificate(certificate.into())
}

fn on_disk(path: &Path) -> Vec<CertificateDer<'static>> {
    tls::read_certificates(path).unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_node_follows_a_rotation_and_says_so_once_it_is_on_disk() {
    let steady = Cluster::generate().unwrap();
    let old = steady.ids()[0];
    let mut stage = Stage::joined(&steady);
    stage
        .beside(async |stage| {
            assert!(time::timeout(Duration::from_millis(50), stage.asked.recv()).await.is_err());
            stage.session();
            let (question, answer) = stage.question().await;
            assert_eq!(question, held(&steady, old));
            let prepared = steady.prepared().unwrap();
            let before = on_disk(&stage.identity.certificate);
            answer.send(Ok(told(&prepared, 0))).unwrap();
            let (question, answer) = stage.question().await;
            assert_eq!(question, held(&prepared, old));
            assert_eq!(on_disk(&stage.identity.ca), prepared.trusted());

            // Another one issues: at once, since the cloud says so. One that does not know it yet is of no use.
            let lagging = Cluster::from_secret(&prepared.to_secret()).unwrap();
            let issuing = prepared.issuing().unwrap();
            answer.send(Ok(told(&issuing, 0))).unwrap();
            let (question, open) = stage.question().await;
            assert_eq!(question, held(&issuing, old));
            let (csr, answer) = stage.certificate_question().await;
            answer.send(Ok(signed(&lagging, &csr))).unwrap();
            let (csr, answer) = stage.certificate_question().await;
            assert_eq!(on_disk(&stage.identity.certificate), before);
            answer.send(Ok(signed(&issuing, &csr))).unwrap();
            let (question, answer) = stage.question().await;
            assert!(open.is_closed());
            let new = issuing.ids()[0];
            assert_eq!(question, held(&issuing, new));
            assert_ne!(on_disk(&stage.identity.certificate), before);

            let dropped = issuing.dropped().unwrap();
            answer.send(Ok(told(&dropped, 0))).unwrap();
            let (question, _open) = stage.question().await;
            assert_eq!(question, held(&dropped, new));
            assert_eq!(on_disk(&stage.identity.ca), dropped.trusted());
            let identity = identity::load(&stage.identity, NODE).unwrap().unwrap();
            identity::Dialing::default().by(identity, &Arc::default()).unwrap();
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn what_is_no_ca_takes_the_place_of_none() {
    let steady = Cluster::generate().unwrap();
    let mut stage = Stage::joined(&steady);
    let ca = steady.trusted().remove(0).to_vec();
    let leaf = on_disk(&stage.identity.certificate).remove(0).to_vec();
    let (kept, before) = (stage.identity.ca.clone(), fs::read(&stage.identity.ca).unwrap());
    stage
        .beside(async |stage| {
            stage.session();
            for certificates in [
                vec![],
                vec![ca.clone(); MAX_AUTHORITIES + 1],
                vec![ca.clone(), leaf],
                vec![b"garbage".to_vec()],
                vec![vec![0x30; MAX_CERTIFICATE + 1]],
            ] {
                let (question, answer) = stage.question().await;
                assert_eq!(question, held(&steady, steady.ids()[0]));
                let certificates = certificates.into_iter().map(Into::into).collect();
                let bad = Authorities { certificates, renew_within_seconds: 0 };
                answer.send(Ok(Answer::Authorities(bad))).unwrap();
            }
            stage.question().await;
            assert_eq!(fs::read(&kept).unwrap(), before);
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_cloud_that_does_not_know_the_question_is_asked_once_a_session() {
    let steady = Cluster::generate().unwrap();
    let mut stage = Stage::joined(&steady);
    stage
        .beside(async |stage| {
            for why in ["this cloudcore does not know the question", "the line to the cloud went down"] {
                stage.session();
                let (_, answer) = stage.question().await;
                answer.send(Err(why.to_owned())).unwrap();
                assert!(time::timeout(Duration::from_millis(50), stage.asked.recv()).await.is_err());
            }
            stage.session();
            stage.question().await;
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_node_that_starts_in_the_middle_of_a_rotation_renews_within_minutes() {
    let issuing = Cluster::generate().unwrap().prepared().unwrap();
    let mut stage = Stage::joined(&issuing);
    let issuing = issuing.issuing().unwrap();
    identity::save_authorities(&stage.identity, &issuing.trusted()).unwrap();
    let begun = time::Instant::now();
    stage
        .beside(async |stage| {
            stage.session();
            let (question, _open) = stage.question().await;
            assert_eq!(question, held(&issuing, issuing.ids()[1]));
            let (csr, answer) = stage.certificate_question().await;
            assert!(begun.elapsed() <= Duration::from_mins(10), "{:?}", begun.elapsed());
            answer.send(Ok(signed(&issuing, &csr))).unwrap();
            assert_eq!(stage.question().await.0, held(&issuing, issuing.ids()[0]));
        })
        .await;
}

#[test]
fn a_power_cut_leaves_the_cas_of_before_or_those_of_after() {
    let steady = Cluster::generate().unwrap();
    let stage = Stage::joined(&steady);
    let before = on_disk(&stage.identity.ca);
    let prepared = steady.prepared().unwrap();
    let whole: String = prepared.trusted().iter().map(|ca| tls::pem("CERTIFICATE", ca)).collect();
    // The file that is on its way may be of any length; it has another name until it is whole and on the disk.
    for length in [0, 1, 100, whole.len() / 2, whole.len() - 1] {
        fs::write(stage.dir.path().join("ca.crt.new"), &whole[..length]).unwrap();
        let identity = identity::load(&stage.identity, NODE).unwrap().unwrap();
        assert_eq!(identity.ca, before);
    }
    identity::save_authorities(&stage.identity, &prepared.trusted()).unwrap();
    assert_eq!(identity::load(&stage.identity, NODE).unwrap().unwrap().ca, prepared.trusted());
    assert_eq!(fs::read_to_string(&stage.identity.ca).unwrap(), whole);
    assert!(!stage.dir.path().join("ca.crt.new").exists());
}
