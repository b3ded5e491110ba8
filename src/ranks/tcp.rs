//! Ranks that talk by TCP, with a connection between each two of them. The first one listens at `MASTER_ADDR` and `MASTER_PORT`, as
//! PyTorch's launchers set them, and tells the others where each of them listens.
//!
//! Who connects is believed, and nothing is encrypted: this is for networks whose machines trust each other.

use std::{
    io::{self, BufWriter, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    sync::{
        Mutex, PoisonError,
        mpsc::{self, Receiver, Sender},
    },
    thread,
    time::{Duration, Instant},
};

use rustix::net::sockopt;

use super::{GO_ON, LaunchError, Place, Transport, launcher::Master, leave};

/// First word of what a rank says when it connects. Another protocol gets another number.
const GREETING: &str = "snclr-ranks-1";
/// Bytes of a greeting or of the list of addresses, at most.
const LONGEST_TEXT: usize = 1 << 20;
/// How long someone who connects may take to greet: it may be anybody.
const TO_GREET: Duration = Duration::from_secs(5);
/// Time between two tries to connect, or to see who has connected.
const PAUSE: Duration = Duration::from_millis(20);
/// How long an unexpected end of another rank is held back: a third one may be about to tell the reason.
const TO_EXPLAIN: Duration = Duration::from_millis(500);
/// A silent connection is tried after this time, so that a machine that has vanished is noticed.
const SILENT: Duration = Duration::from_secs(60);

/// One of several processes, connected to all others.
pub struct Tcp {
    rank: usize,
    /// By rank; None in this one's own place.
    peers: Vec<Option<Peer>>,
}

/// Another rank.
struct Peer {
    stream: Mutex<TcpStream>,
    /// What it has sent, in order. A thread reads it, so that two ranks may send to each other at once.
    received: Mutex<Receiver<Vec<u8>>>,
}

/// What ranks send: a kind, a number and, with the first kind, as many bytes.
enum Message {
    Bytes(Vec<u8>),
    /// The sender has taken leave.
    End,
    /// All ranks have to end with this code.
    Abort(u8),
}

impl Message {
    const BYTES: u8 = 0;
    const END: u8 = 1;
    const ABORT: u8 = 2;

    /// Reads a message of at most `longest` bytes.
    fn read(from: &mut impl Read, longest: usize) -> io::Result<Self> {
        let mut head = [0; 9];
        from.read_exact(&mut head)?;
        let number = u64::from_le_bytes(head[1..].try_into().expect("eight bytes"));
        match head[0] {
            Self::BYTES if number <= longest as u64 => {
                let mut bytes = vec![0; number as usize];
                from.read_exact(&mut bytes)?;
                Ok(Self::Bytes(bytes))
            }
            Self::END => Ok(Self::End),
            Self::ABORT => Ok(Self::Abort(number as u8)),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    /// Writes a message of a kind; small ones in one go.
    fn write(to: &mut TcpStream, kind: u8, number: u64, bytes: &[u8]) -> io::Result<()> {
        let mut to = BufWriter::with_capacity(1 << 12, to);
        to.write_all(&[kind])?;
        to.write_all(&number.to_le_bytes())?;
        to.write_all(bytes)?;
        to.flush()
    }

    fn write_text(to: &mut TcpStream, text: &str) -> io::Result<()> {
        Self::write(to, Self::BYTES, text.len() as u64, text.as_bytes())
    }

    fn read_text(from: &mut TcpStream) -> io::Result<String> {
        match Self::read(from, LONGEST_TEXT)? {
            Self::Bytes(bytes) => String::from_utf8(bytes).map_err(|_| io::ErrorKind::InvalidData.into()),
            Self::End | Self::Abort(_) => Err(io::ErrorKind::InvalidData.into()),
        }
    }
}

impl Tcp {
    /// Connects all ranks; each may wait for the others as long as `limit`.
    ///
    /// # Errors
    /// When one of them cannot be reached, or they do not agree who is who.
    pub fn start(place: &Place, master: &Master, limit: Duration) -> Result<Self, LaunchError> {
        let meeting = Meeting { rank: place.rank, size: place.size, until: Instant::now() + limit };
        let streams = if place.rank == 0 { meeting.host(master)? } else { meeting.join(master)? };
        let peers = streams
            .into_iter()
            .enumerate()
            .map(|(other, stream)| stream.map(|stream| Peer::new(stream, place.rank, other, place.size)).transpose());
        let peers = peers.collect::<io::Result<_>>().map_err(|error| meeting.unreached(0, &master.text(), &error))?;
        Ok(Self { rank: place.rank, peers })
    }

    /// All other ranks, first the one behind this one.
    fn others(&self) -> impl Iterator<Item = (usize, &Peer)> {
        let ranks = (1..self.peers.len()).map(|step| (self.rank + step) % self.peers.len());
        ranks.filter_map(|rank| Some((rank, self.peers[rank].as_ref()?)))
    }

    /// Sends each other rank its part of `bytes`, or tells it something else.
    fn tell<'b>(&self, kind: u8, part: impl Fn(usize) -> (u64, &'b [u8])) {
        for (rank, peer) in self.others() {
            let (number, bytes) = part(rank);
            // When it is gone, the thread that reads from it ends this process.
            let _ =
                Message::write(&mut peer.stream.lock().unwrap_or_else(PoisonError::into_inner), kind, number, bytes);
        }
    }

    fn send<'b>(&self, part: impl Fn(usize) -> &'b [u8]) {
        self.tell(Message::BYTES, |rank| (part(rank).len() as u64, part(rank)));
    }

    /// Puts what each rank has sent in its place; this one's is `own`.
    fn receive(&self, own: &[u8], places: &mut [u8]) {
        for (rank, peer) in self.peers.iter().enumerate() {
            let place = &mut places[rank * own.len()..][..own.len()];
            match peer {
                Some(peer) => place.copy_from_slice(&peer.next()),
                None => place.copy_from_slice(own),
            }
        }
    }
}

impl Peer {
    /// The rank `other` behind a connection, which a new thread reads.
    fn new(stream: TcpStream, own: usize, other: usize, size: usize) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(None)?;
        sockopt::set_socket_keepalive(&stream, true)?;
        #[cfg(target_os = "linux")]
        sockopt::set_tcp_keepidle(&stream, SILENT)?;
        let (sender, received) = mpsc::channel();
        let mut reader = stream.try_clone()?;
        thread::Builder::new().name(format!("from rank {other}")).spawn(move || {
            if read_all(&mut reader, &sender).is_err() {
                thread::sleep(TO_EXPLAIN);
                // One rank tells it: the first that is left.
                if own == usize::from(other == 0) {
                    let _ = writeln!(io::stderr(), "error: rank {other} of {size} is gone\n  help: {GO_ON}");
                }
                leave(1);
            }
        })?;
        Ok(Self { stream: Mutex::new(stream), received: Mutex::new(received) })
    }

    /// What it sends next.
    fn next(&self) -> Vec<u8> {
        self.received.lock().unwrap_or_else(PoisonError::into_inner).recv().expect("the rank has not taken leave")
    }
}

/// Hands on what a rank sends, until it takes leave. An order to end is obeyed.
fn read_all(from: &mut TcpStream, to: &Sender<Vec<u8>>) -> io::Result<()> {
    loop {
        match Message::read(from, usize::MAX)? {
            Message::Bytes(bytes) => {
                // The receiver is gone once this rank has taken leave.
                let _ = to.send(bytes);
            }
            Message::End => return Ok(()),
            Message::Abort(code) => leave(code),
        }
    }
}

impl Transport for Tcp {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.peers.len()
    }

    fn all_gather(&self, own: &[u8], all: &mut [u8]) {
        self.send(|_| own);
        self.receive(own, all);
    }

    fn all_to_all(&self, send: &[u8], receive: &mut [u8]) {
        let len = send.len() / self.size();
        let part = |rank: usize| &send[rank * len..][..len];
        self.send(part);
        self.receive(part(self.rank), receive);
    }

    fn broadcast(&self, bytes: Vec<u8>) -> Vec<u8> {
        match &self.peers[0] {
            Some(first) => first.next(),
            None => {
                self.send(|_| &bytes);
                bytes
            }
        }
    }

    fn end(&self) {
        self.tell(Message::END, |_| (0, &[]));
        for (_, peer) in self.others() {
            // It fails once the other one has taken leave too.
            while peer.received.lock().unwrap_or_else(PoisonError::into_inner).recv().is_ok() {}
        }
    }

    fn abort(&self, code: u8) -> ! {
        self.tell(Message::ABORT, |_| (code.into(), &[]));
        // What has not been read yet is lost with the connection.
        thread::sleep(Duration::from_millis(100));
        leave(code)
    }
}

/// How the ranks find each other.
struct Meeting {
    rank: usize,
    size: usize,
    until: Instant,
}

impl Meeting {
    /// The first rank: waits for the others, and tells them of each other. Connections by rank.
    fn host(&self, master: &Master) -> Result<Vec<Option<TcpStream>>, LaunchError> {
        let listener = match loopback(&master.host) {
            Some(address) => TcpListener::bind((address, master.port)),
            // Its name may be that of a gateway in front of it.
            None => everywhere(master.port),
        };
        let listener = listener.map_err(|error| LaunchError::Listen { port: master.port, why: error.to_string() })?;
        let mut met = self.expect(&listener, 1..self.size)?;
        let addresses: Vec<_> =
            met.iter().map(|met| met.as_ref().map_or(String::new(), |met| met.1.to_string())).collect();
        for (stream, _) in met.iter_mut().flatten() {
            // One that is gone is noticed by the first exchange.
            let _ = Message::write_text(stream, &addresses.join("\n"));
        }
        Ok(met.into_iter().map(|met| Some(met?.0)).collect())
    }

    /// Any other rank: goes to the first one, then to those before it, and waits for those behind it. Connections by rank.
    fn join(&self, master: &Master) -> Result<Vec<Option<TcpStream>>, LaunchError> {
        let lost = |error: &io::Error| self.unreached(0, &master.text(), error);
        let mut first = self.connect(0, &master.text(), || TcpStream::connect((&*master.host, master.port)))?;
        let host = first.peer_addr().map_err(|error| lost(&error))?.ip();
        let listener = if loopback(&master.host).is_some() { TcpListener::bind((host, 0)) } else { everywhere(0) };
        let listener = listener.map_err(|error| LaunchError::Listen { port: 0, why: error.to_string() })?;
        let port = listener.local_addr().map_err(|error| lost(&error))?.port();
        self.greet(&mut first, port).map_err(|error| lost(&error))?;
        first.set_read_timeout(Some(self.left())).map_err(|error| lost(&error))?;
        let addresses = match Message::read_text(&mut first) {
            Ok(addresses) => addresses,
            // The first rank has ended, and said why.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Err(LaunchError::FirstGone),
            Err(error) => return Err(lost(&error)),
        };
        let mut streams: Vec<Option<TcpStream>> = (0..self.size).map(|_| None).collect();
        streams[0] = Some(first);
        for (other, address) in addresses.lines().enumerate().take(self.rank).skip(1) {
            let invalid = |_| lost(&io::ErrorKind::InvalidData.into());
            let mut address: SocketAddr = address.parse().map_err(invalid)?;
            if address.ip().is_loopback() {
                // It reached the first rank within a machine, which this one knows by another name.
                address.set_ip(host);
            }
            let mut stream = self.connect(other, &address.to_string(), || TcpStream::connect(address))?;
            self.greet(&mut stream, 0).map_err(|error| self.unreached(other, &address.to_string(), &error))?;
            streams[other] = Some(stream);
        }
        let met = self.expect(&listener, self.rank + 1..self.size)?;
        for (stream, met) in streams.iter_mut().zip(met) {
            *stream = stream.take().or(met.map(|met| met.0));
        }
        Ok(streams)
    }

    /// Says who this is, and where it listens.
    fn greet(&self, stream: &mut TcpStream, port: u16) -> io::Result<()> {
        Message::write_text(stream, &format!("{GREETING} {} {} {port}", self.rank, self.size))
    }

    /// Tries to reach a rank until it answers.
    fn connect(
        &self,
        other: usize,
        at: &str,
        try_it: impl Fn() -> io::Result<TcpStream>,
    ) -> Result<TcpStream, LaunchError> {
        loop {
            match try_it() {
                Ok(stream) => return Ok(stream),
                Err(error) if Instant::now() > self.until => return Err(self.unreached(other, at, &error)),
                Err(_) => thread::sleep(PAUSE),
            }
        }
    }

    /// Waits until each of these ranks has greeted; by rank, its connection and where it listens.
    fn expect(
        &self,
        listener: &TcpListener,
        ranks: std::ops::Range<usize>,
    ) -> Result<Vec<Option<(TcpStream, SocketAddr)>>, LaunchError> {
        let mut met: Vec<Option<(TcpStream, SocketAddr)>> = (0..self.size).map(|_| None).collect();
        let failed = |error: io::Error| LaunchError::Listen { port: 0, why: error.to_string() };
        listener.set_nonblocking(true).map_err(failed)?;
        while ranks.clone().any(|rank| met[rank].is_none()) {
            let (mut stream, from) = match listener.accept() {
                Ok(connected) => connected,
                Err(_) if Instant::now() > self.until => {
                    let missing = ranks.filter(|rank| met[*rank].is_none()).map(|rank| rank.to_string());
                    let missing = missing.collect::<Vec<_>>().join(", ");
                    return Err(LaunchError::Missing { rank: self.rank, size: self.size, missing });
                }
                Err(_) => {
                    thread::sleep(PAUSE);
                    continue;
                }
            };
            // Anybody may connect: who does not greet is none of the ranks.
            let Ok((rank, size, port)) = greeting(&mut stream) else { continue };
            if size != self.size || !ranks.contains(&rank) {
                return Err(LaunchError::OtherSize { rank, size, own: self.size });
            }
            if met[rank].replace((stream, SocketAddr::new(from.ip().to_canonical(), port))).is_some() {
                return Err(LaunchError::Twice { rank });
            }
        }
        Ok(met)
    }

    fn left(&self) -> Duration {
        self.until.saturating_duration_since(Instant::now()).max(PAUSE)
    }

    fn unreached(&self, other: usize, at: &str, why: &io::Error) -> LaunchError {
        let (at, why) = (at.to_owned(), why.to_string());
        LaunchError::Unreached { rank: self.rank, size: self.size, other, at, why }
    }
}

/// The rank, the number of ranks and the port that someone who has connected says.
fn greeting(stream: &mut TcpStream) -> io::Result<(usize, usize, u16)> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(TO_GREET))?;
    let text = Message::read_text(stream)?;
    let words: Vec<&str> = text.split(' ').collect();
    let [GREETING, rank, size, port] = words[..] else { return Err(io::ErrorKind::InvalidData.into()) };
    let invalid = |_| io::ErrorKind::InvalidData;
    Ok((rank.parse().map_err(invalid)?, size.parse().map_err(invalid)?, port.parse().map_err(invalid)?))
}

/// The address, where only processes of this machine can be meant.
fn loopback(host: &str) -> Option<IpAddr> {
    let address = if host == "localhost" { Some(Ipv4Addr::LOCALHOST.into()) } else { host.parse().ok() };
    address.filter(IpAddr::is_loopback)
}

/// Listens on all addresses of this machine.
fn everywhere(port: u16) -> io::Result<TcpListener> {
    TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).or_else(|_| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ranks::Ranks;

    fn free_port() -> u16 {
        TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
    }

    fn at(host: &str, port: u16) -> Master {
        Master { host: host.to_owned(), port }
    }

    fn place(rank: usize, size: usize) -> Place {
        Place { launcher: "torchrun", rank, size, local: None, local_rank: None }
    }

    /// What `work` gives on each of `size` ranks, which are threads.
    fn run<T: Send>(size: usize, host: &str, work: impl Fn(Ranks) -> T + Sync) -> Vec<T> {
        let (master, limit) = (at(host, free_port()), Duration::from_secs(20));
        thread::scope(|scope| {
            let ranks = (0..size).rev().map(|rank| {
                let (work, master) = (&work, &master);
                scope.spawn(move || work(Ranks::over(Tcp::start(&place(rank, size), master, limit).unwrap())))
            });
            let ranks: Vec<_> = ranks.collect();
            ranks.into_iter().rev().map(|rank| rank.join().unwrap()).collect()
        })
    }

    #[test]
    fn bytes_arrive_in_the_order_of_ranks() {
        for (size, host) in [(2, "localhost"), (3, "127.0.0.1"), (4, "0.0.0.0")] {
            // Longer than what a connection holds while nobody reads.
            for len in [0, 1, 1000, 3_000_001] {
                let all = run(size, host, |ranks| {
                    let value = |from: usize, to: usize, i: usize| (from * 7 + to * 3 + i) as u8;
                    let rank = ranks.rank();
                    let sent: Vec<u8> = (0..size * len).map(|i| value(rank, i / len, i % len)).collect();
                    let exchanged: Vec<u8> = (0..size * len).map(|i| value(i / len, rank, i % len)).collect();
                    assert!(ranks.exchange(&sent) == exchanged);
                    let own: Vec<u8> = (0..len).map(|i| value(rank, 0, i)).collect();
                    let gathered: Vec<u8> = (0..size * len).map(|i| value(i / len, 0, i % len)).collect();
                    assert!(ranks.gather(&own) == gathered);
                    let told = ranks.broadcast(if rank == 0 { own } else { Vec::new() });
                    assert!(told.len() == len && told.iter().enumerate().all(|(i, byte)| *byte == value(0, 0, i)));
                    assert_eq!(
                        ranks.gather(&[rank as u8]),
                        (0..size as u8).collect::<Vec<_>>(),
                        "nothing is left over"
                    );
                    ranks.end();
                    rank
                });
                assert_eq!(all, (0..size).collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn strangers_are_not_listened_to() {
        let (master, limit) = (at("localhost", free_port()), Duration::from_secs(20));
        thread::scope(|scope| {
            let first = scope.spawn(|| Tcp::start(&place(0, 2), &master, limit).unwrap());
            let meeting = Meeting { rank: 1, size: 2, until: Instant::now() + limit };
            for words in ["GET / HTTP/1.1\r\n\r\n", "", "\0\u{c}\0\0\0\0\0\0\0snclr-ranks-1"] {
                let mut stranger = meeting.connect(0, "", || TcpStream::connect((&*master.host, master.port))).unwrap();
                stranger.write_all(words.as_bytes()).unwrap();
            }
            let second = Tcp::start(&place(1, 2), &master, limit).unwrap();
            let ended = scope.spawn(move || second.end());
            first.join().unwrap().end();
            ended.join().unwrap();
        });
    }

    #[test]
    fn ranks_that_cannot_meet_say_why() {
        let start = |rank, size, master: &Master, limit| {
            Tcp::start(&place(rank, size), master, limit).err().map(|e| e.to_string())
        };
        let soon = Duration::from_millis(200);
        let master = at("localhost", free_port());
        assert_eq!(
            start(0, 4, &master, soon).as_deref(),
            Some(
                "rank 0 of 4 has waited for ranks that have not come: 1, 2, 3\n  \
                 help: start all ranks with the same MASTER_ADDR and MASTER_PORT; --collective-timeout SECONDS allows for more time"
            )
        );
        let unreached = start(1, 2, &master, soon).unwrap();
        let beginning = format!("rank 1 of 2 cannot reach rank 0 at localhost:{}: ", master.port);
        assert!(unreached.starts_with(&beginning), "{unreached}");
        let held = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let taken = at("127.0.0.1", held.local_addr().unwrap().port());
        let refused = start(0, 2, &taken, soon).unwrap();
        drop(held);
        assert!(refused.starts_with("the first rank cannot listen on port"), "{refused}");
        // Two of one number, and one of another number of ranks.
        for (rank, size, text) in
            [(1, 3, "two processes say that they are rank 1"), (1, 2, "rank 1 says that there are 2 ranks")]
        {
            let (master, limit) = (at("localhost", free_port()), Duration::from_secs(3));
            thread::scope(|scope| {
                let first = scope.spawn(|| start(0, 3, &master, limit));
                let others = [(1, 3), (rank, size)].map(|(rank, size)| {
                    let master = &master;
                    scope.spawn(move || start(rank, size, master, limit))
                });
                assert!(first.join().unwrap().unwrap().starts_with(text));
                others.into_iter().for_each(|other| assert!(other.join().unwrap().is_some()));
            });
        }
    }
}
