//! Ranks that communicate by TCP, with a connection between every two ranks. Rank 0 listens at `MASTER_ADDR` and `MASTER_PORT`,
//! which PyTorch's launchers set, and sends the other ranks the addresses of all.
//!
//! Connections are neither authenticated nor encrypted: use them in trusted networks.

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

/// First word of a greeting, which a rank sends when it connects. Its number is the protocol's version.
const GREETING: &str = "snclr-ranks-1";
/// Most bytes of a greeting, or of the list of addresses.
const LONGEST_TEXT: usize = 1 << 20;
/// Longest time from a connection to its greeting. Programs other than ranks may connect too.
const TO_GREET: Duration = Duration::from_secs(5);
/// Time between two attempts to connect, or to accept a connection.
const PAUSE: Duration = Duration::from_millis(20);
/// Time from the loss of another rank to the end of this one. Within it, a third rank may still send [`Message::Abort`].
const TO_EXPLAIN: Duration = Duration::from_millis(500);
/// Time without traffic after which keep-alive checks whether the other machine still answers.
const SILENT: Duration = Duration::from_secs(60);

/// This rank, connected to all others.
pub struct Tcp {
    rank: usize,
    /// The other ranks by number; None at this rank's own number.
    peers: Vec<Option<Peer>>,
}

/// Another rank.
struct Peer {
    stream: Mutex<TcpStream>,
    /// The bytes that the peer has sent, in order. A thread reads them from the connection, so that two ranks can send to each
    /// other at the same time.
    received: Mutex<Receiver<Vec<u8>>>,
}

/// A message between ranks: one byte for the kind, a number of 8 bytes (a length or an exit code, little-endian), and for
/// [`Message::Bytes`] the bytes.
enum Message {
    Bytes(Vec<u8>),
    /// The sender sends nothing more.
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

    /// Writes a message of kind `kind`. A small message is sent as a single packet.
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
    /// Connects this rank to all others, and waits for them at most as long as `limit`.
    ///
    /// # Errors
    /// When a rank cannot be reached or does not connect in time, when two processes have the same rank, or when ranks disagree
    /// on the number of ranks.
    pub fn start(place: &Place, master: &Master, limit: Duration) -> Result<Self, LaunchError> {
        let meeting = Meeting { rank: place.rank, size: place.size, until: Instant::now() + limit };
        let streams = if place.rank == 0 { meeting.host(master)? } else { meeting.join(master)? };
        let peers = streams
            .into_iter()
            .enumerate()
            .map(|(other, stream)| stream.map(|stream| Peer::new(stream, place.rank, other, place.size)).transpose());
        let peers = peers.collect::<io::Result<_>>().map_err(|error| meeting.unreached(0, &master.text(), error))?;
        Ok(Self { rank: place.rank, peers })
    }

    /// All other ranks, starting with the next higher one, so that not all ranks send to the same rank at once.
    fn others(&self) -> impl Iterator<Item = (usize, &Peer)> {
        let ranks = (1..self.peers.len()).map(|step| (self.rank + step) % self.peers.len());
        ranks.filter_map(|rank| Some((rank, self.peers[rank].as_ref()?)))
    }

    /// Sends each other rank a message of this kind, with the number and bytes that `part` returns for that rank.
    fn tell<'b>(&self, kind: u8, part: impl Fn(usize) -> (u64, &'b [u8])) {
        for (rank, peer) in self.others() {
            let (number, bytes) = part(rank);
            // If the rank is gone, the thread that reads from it ends this process.
            let _ =
                Message::write(&mut peer.stream.lock().unwrap_or_else(PoisonError::into_inner), kind, number, bytes);
        }
    }

    /// Sends each other rank the bytes that `part` returns for it.
    fn send<'b>(&self, part: impl Fn(usize) -> &'b [u8]) {
        self.tell(Message::BYTES, |rank| (part(rank).len() as u64, part(rank)));
    }

    /// Receives a piece from each other rank, and writes all pieces into `places` in the order of ranks. `own` is the piece of
    /// this rank; all pieces are as long as `own`.
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
    /// The peer that is rank `other` of `size`. Starts a thread that reads its connection. `own` is this process's rank.
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
                // Only the lowest rank that is left prints the error.
                if own == usize::from(other == 0) {
                    let _ = writeln!(io::stderr(), "error: rank {other} of {size} is gone\n  help: {GO_ON}");
                }
                leave(1);
            }
        })?;
        Ok(Self { stream: Mutex::new(stream), received: Mutex::new(received) })
    }

    /// The peer's next bytes; None after its [`Message::End`].
    fn receive(&self) -> Option<Vec<u8>> {
        self.received.lock().unwrap_or_else(PoisonError::into_inner).recv().ok()
    }

    /// The peer's next bytes, which must come before its [`Message::End`].
    fn next(&self) -> Vec<u8> {
        self.receive().expect("all ranks exchange the same before they end")
    }
}

/// Passes the bytes that a rank sends to `to`, until its [`Message::End`]. A [`Message::Abort`] ends this process.
fn read_all(from: &mut TcpStream, to: &Sender<Vec<u8>>) -> io::Result<()> {
    loop {
        match Message::read(from, usize::MAX)? {
            Message::Bytes(bytes) => {
                // This fails only if this rank has dropped the receiver, and so needs no more bytes.
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
            while peer.receive().is_some() {}
        }
    }

    fn abort(&self, code: u8) -> ! {
        self.tell(Message::ABORT, |_| (code.into(), &[]));
        // Give the other ranks time to read the message before the connections close.
        thread::sleep(Duration::from_millis(100));
        leave(code)
    }
}

/// How this rank finds the others at the start: its number, the number of ranks, and the deadline.
struct Meeting {
    rank: usize,
    size: usize,
    until: Instant,
}

impl Meeting {
    /// The part of rank 0: waits for the other ranks, and sends them the addresses of all. Returns its connections by rank.
    fn host(&self, master: &Master) -> Result<Vec<Option<TcpStream>>, LaunchError> {
        let listener = match loopback(&master.host) {
            Some(address) => TcpListener::bind((address, master.port)),
            // The host may be a name, or a gateway whose address does not belong to this machine.
            None => everywhere(master.port),
        };
        let listener = listener.map_err(|error| LaunchError::Listen { port: master.port, why: error.to_string() })?;
        let mut met = self.expect(&listener, 1..self.size)?;
        let addresses: Vec<_> =
            met.iter().map(|met| met.as_ref().map_or(String::new(), |met| met.1.to_string())).collect();
        for (stream, _) in met.iter_mut().flatten() {
            // If the rank is gone, the first exchange detects it.
            let _ = Message::write_text(stream, &addresses.join("\n"));
        }
        Ok(met.into_iter().map(|met| Some(met?.0)).collect())
    }

    /// The part of every other rank: connects to rank 0 and to all lower ranks, and waits for the higher ones. Returns its
    /// connections by rank.
    fn join(&self, master: &Master) -> Result<Vec<Option<TcpStream>>, LaunchError> {
        let lost = |error| self.unreached(0, &master.text(), error);
        let mut first = self.connect(0, &master.text(), || TcpStream::connect((&*master.host, master.port)))?;
        let host = first.peer_addr().map_err(lost)?.ip();
        let listener = if loopback(&master.host).is_some() { TcpListener::bind((host, 0)) } else { everywhere(0) };
        let listener = listener.map_err(|error| self.no_port(&error))?;
        let port = listener.local_addr().map_err(lost)?.port();
        self.greet(&mut first, port).map_err(lost)?;
        first.set_read_timeout(Some(self.left())).map_err(lost)?;
        let addresses = match Message::read_text(&mut first) {
            Ok(addresses) => addresses,
            // Rank 0 has ended and printed why.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Err(LaunchError::FirstGone),
            Err(error) => return Err(lost(error)),
        };
        let mut streams: Vec<Option<TcpStream>> = (0..self.size).map(|_| None).collect();
        streams[0] = Some(first);
        for (other, address) in addresses.lines().enumerate().take(self.rank).skip(1) {
            let mut address: SocketAddr = address.parse().map_err(|_| lost(io::ErrorKind::InvalidData.into()))?;
            if address.ip().is_loopback() {
                // That rank runs on rank 0's machine, and connected to rank 0 by a loopback address. Reach it by rank 0's
                // address.
                address.set_ip(host);
            }
            let mut stream = self.connect(other, &address.to_string(), || TcpStream::connect(address))?;
            self.greet(&mut stream, 0).map_err(|error| self.unreached(other, &address.to_string(), error))?;
            streams[other] = Some(stream);
        }
        let met = self.expect(&listener, self.rank + 1..self.size)?;
        for (stream, met) in streams.iter_mut().zip(met) {
            *stream = stream.take().or(met.map(|met| met.0));
        }
        Ok(streams)
    }

    /// Sends the greeting: this rank, the number of ranks, and the port where this rank listens.
    fn greet(&self, stream: &mut TcpStream, port: u16) -> io::Result<()> {
        Message::write_text(stream, &format!("{GREETING} {} {} {port}", self.rank, self.size))
    }

    /// Connects to a rank. Tries again until the rank answers or the deadline passes.
    fn connect(
        &self,
        other: usize,
        at: &str,
        try_it: impl Fn() -> io::Result<TcpStream>,
    ) -> Result<TcpStream, LaunchError> {
        loop {
            match try_it() {
                Ok(stream) => return Ok(stream),
                Err(error) if Instant::now() > self.until => return Err(self.unreached(other, at, error)),
                Err(_) => thread::sleep(PAUSE),
            }
        }
    }

    /// Waits until each of these ranks has connected. Returns the connection and the listening address of each, by rank.
    fn expect(
        &self,
        listener: &TcpListener,
        ranks: std::ops::Range<usize>,
    ) -> Result<Vec<Option<(TcpStream, SocketAddr)>>, LaunchError> {
        let mut met: Vec<Option<(TcpStream, SocketAddr)>> = (0..self.size).map(|_| None).collect();
        listener.set_nonblocking(true).map_err(|error| self.no_port(&error))?;
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
            // A program that sends no greeting is not a rank.
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

    /// The time until the deadline, never zero.
    fn left(&self) -> Duration {
        self.until.saturating_duration_since(Instant::now()).max(PAUSE)
    }

    fn unreached(&self, other: usize, at: &str, why: io::Error) -> LaunchError {
        let (at, why) = (at.to_owned(), why.to_string());
        LaunchError::Unreached { rank: self.rank, size: self.size, other, at, why }
    }

    fn no_port(&self, why: &io::Error) -> LaunchError {
        LaunchError::NoPort { rank: self.rank, size: self.size, why: why.to_string() }
    }
}

/// Reads a greeting: a rank, its number of ranks and the port where it listens.
fn greeting(stream: &mut TcpStream) -> io::Result<(usize, usize, u16)> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(TO_GREET))?;
    let text = Message::read_text(stream)?;
    let words: Vec<&str> = text.split(' ').collect();
    let [GREETING, rank, size, port] = words[..] else { return Err(io::ErrorKind::InvalidData.into()) };
    let invalid = |_| io::ErrorKind::InvalidData;
    Ok((rank.parse().map_err(invalid)?, size.parse().map_err(invalid)?, port.parse().map_err(invalid)?))
}

/// The loopback address that `host` names; None for other hosts.
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

    /// Runs `work` on each of `size` ranks, which are threads, and returns the results by rank.
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
            // The last length is more than a connection buffers while no rank reads.
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
    fn connections_of_other_programs_are_ignored() {
        let (master, limit) = (at("localhost", free_port()), Duration::from_secs(20));
        thread::scope(|scope| {
            let first = scope.spawn(|| Tcp::start(&place(0, 2), &master, limit).unwrap());
            let meeting = Meeting { rank: 1, size: 2, until: Instant::now() + limit };
            for words in ["GET / HTTP/1.1\r\n\r\n", "", "\0\u{c}\0\0\0\0\0\0\0snclr-ranks-1"] {
                let mut other = meeting.connect(0, "", || TcpStream::connect((&*master.host, master.port))).unwrap();
                other.write_all(words.as_bytes()).unwrap();
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
        // First two processes with the same rank, then a process with another number of ranks.
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
