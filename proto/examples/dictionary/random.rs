//! Random choices that are the same in each run.

pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    /// xorshift64*.
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    pub(crate) fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high - low + 1)
    }

    pub(crate) fn percent(&mut self, chance: u64) -> bool {
        self.below(100) < chance
    }

    pub(crate) fn pick<'a>(&mut self, from: &[&'a str]) -> &'a str {
        let last = from.len() as u64;
        usize::try_from(self.below(last)).ok().and_then(|at| from.get(at)).copied().unwrap_or_default()
    }

    pub(crate) fn letters(&mut self, alphabet: &str, length: usize) -> String {
        let alphabet: Vec<&str> = alphabet.split("").filter(|letter| !letter.is_empty()).collect();
        (0..length).map(|_| self.pick(&alphabet)).collect()
    }

    pub(crate) fn hex(&mut self, length: usize) -> String {
        self.letters("0123456789abcdef", length)
    }

    /// What the API server ends generated names with.
    pub(crate) fn suffix(&mut self, length: usize) -> String {
        self.letters("bcdfghjklmnpqrstvwxz2456789", length)
    }

    pub(crate) fn base64(&mut self, length: usize) -> String {
        self.letters("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/", length / 4 * 4)
    }

    pub(crate) fn uid(&mut self) -> String {
        let variant = self.pick(&["8", "9", "a", "b"]);
        let [low, mid, high, clock, node] = [8, 4, 3, 3, 12].map(|length| self.hex(length));
        format!("{low}-{mid}-4{high}-{variant}{clock}-{node}")
    }

    pub(crate) fn time(&mut self) -> String {
        let [year, month, day] = [(2026, 2029), (1, 12), (1, 28)].map(|(low, high)| self.between(low, high));
        let [hour, minute, second] = [23, 59, 59].map(|high| self.between(0, high));
        format!("{year}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
    }

    pub(crate) fn ip(&mut self) -> String {
        let net = self.pick(&["10.42", "10.244", "172.16", "192.168", "10.0"]);
        format!("{net}.{}.{}", self.below(32), self.between(2, 254))
    }

    pub(crate) fn word(&mut self) -> &'static str {
        self.pick(&[
            "api", "web", "worker", "gateway", "camera", "sensor", "modbus", "mqtt", "opc", "agent", "line",
            "press", "oven", "robot", "meter", "scale", "store", "cache", "queue", "ingest", "sync", "proxy",
            "model", "infer", "label", "audit", "batch", "report", "display", "kiosk", "billing", "stock",
            "door", "light", "pump", "valve", "wind", "solar", "grid", "rail", "fleet", "ship", "crane",
            "vision", "audio", "alert", "log", "backup", "config", "auth",
        ])
    }

    pub(crate) fn name(&mut self) -> String {
        let (first, second) = (self.word(), self.word());
        if self.percent(30) { first.to_owned() } else { format!("{first}-{second}") }
    }

    pub(crate) fn namespace(&mut self) -> String {
        let usual =
            self.pick(&["default", "default", "kube-system", "monitoring", "edge", "apps", "production"]);
        if self.percent(30) { self.name() } else { usual.to_owned() }
    }

    pub(crate) fn node(&mut self) -> String {
        let kind = self.pick(&["edge", "site", "gw", "node", "store", "plant", "edge-node"]);
        format!("{kind}-{}", self.between(1, 999))
    }

    pub(crate) fn image(&mut self) -> String {
        let (name, number) = (self.name(), self.below(20));
        let repository = match self.below(8) {
            0 => format!("registry.{}.example.com/{}/{name}", self.word(), self.word()),
            1 => format!("ghcr.io/{}/{name}", self.word()),
            2 => format!("quay.io/{}/{name}", self.word()),
            3 => format!("registry.k8s.io/{name}"),
            4 => format!(
                "docker.io/library/{}",
                self.pick(&["nginx", "redis", "alpine", "postgres", "influxdb"])
            ),
            5 => self
                .pick(&["eclipse-mosquitto", "grafana/grafana", "rancher/klipper-lb", "nodered/node-red"])
                .to_owned(),
            _ => format!("{}/{name}", self.word()),
        };
        match self.below(4) {
            0 => format!("{repository}:v{number}.{}.{}", self.below(30), self.below(9)),
            1 => format!("{repository}:{number}.{}", self.below(30)),
            2 => format!("{repository}:latest"),
            _ => format!("{repository}:{number}.{}.{}-alpine", self.below(30), self.below(9)),
        }
    }
}
