import CryptoKit
import Foundation

/// A file to download: its name, without folders, its bytes and their SHA-256.
public struct ReleaseFile: Equatable, Sendable {
    public let name: String
    public let bytes: Int
    public let sha256: String
}

/// One version of what an app downloads.  `text`: that of release.json; `payload`: what was signed.
public struct Release: Equatable, Sendable {
    public let version: Int
    public let codeSpace: String
    public let student: String
    public let created: String
    public let files: [ReleaseFile]
    public let gallery: [ReleaseFile]
    public let payload: String
    public let text: Data
}

/// `space`: the code space of the gallery in use; once a release has brought a gallery, that release's.
/// `pinned`: the lowest version that the app takes.
public struct ReleaseClient: Sendable {
    public let space: String
    public let installed: Release?
    public let pinned: Int

    public init(space: String, installed: Release? = nil, pinned: Int = 0) {
        self.space = space
        self.installed = installed
        self.pinned = pinned
    }
}

/// Nothing, as it is installed; the student alone; the student together with the gallery.
public enum ReleaseUpdate: Sendable {
    case none, student, both
}

/// Something that is not to be installed; keep what is.
public struct ReleaseError: LocalizedError {
    public let expected: String
    public let found: String
    public let fix: String
    public var errorDescription: String? { "expected \(expected); found \(found). \(fix)" }
}

public let maxRelease = 65536 // bytes

private let whole = "a whole release.json of Twinhash"
private let again =
    "Download it again; if that does not help, do not install it: it is not what was signed with the app's key."
private let line = #" [0-9a-f]{64} [1-9][0-9]{0,9} [A-Za-z0-9_](?:[A-Za-z0-9._-]{0,98}[A-Za-z0-9_-])?\n"#
private let form = #"\A"#
    + #"twinhash release 1\nversion [1-9][0-9]{0,8}\ncode_space [0-9a-f]{16}\nstudent [A-Za-z0-9._/:-]{1,100}\n"#
    + #"created [0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z\n"#
    + "(?:file\(line)){1,64}(?:gallery\(line)){0,64}" + #"\z"#

/// Verifies the signature of a release.json, then reads it; throws for whatever the key did not sign (iOS 13, macOS 11).
///
///     let release = try readRelease(downloaded, publicKey: digits)
///     let update = try checkUpdate(release, ReleaseClient(space: spaceOfTheGallery, installed: installed, pinned: 2))
///     for file in release.files + release.gallery {
///         try checkFile(at: downloads.appendingPathComponent(file.name), file)
///     }
///     // then move the checked files, and no others, into a new folder, and that to its place, whole
///
/// An update of the student alone keeps the installed gallery, and only where the release that brought it has the
/// new one's `codeSpace`: keep that release with the gallery, and check the gallery's files by it again.
///
/// `publicKey`: the 64 hexadecimal digits that `export/run.py release-key` prints, part of the app, never downloaded.
public func readRelease(_ data: Data, publicKey: String) throws -> Release {
    guard data.count <= maxRelease else {
        throw ReleaseError(expected: whole, found: "more than \(maxRelease) bytes", fix: again)
    }
    guard let record = (try? JSONSerialization.jsonObject(with: data)) as? [String: Any], record.count == 2,
          let payload = record["payload"] as? String, let digits = record["signature"] as? String,
          let signature = unhex(digits, count: 64)
    else { throw ReleaseError(expected: whole, found: "no JSON of payload and signature", fix: again) }
    guard let raw = unhex(publicKey, count: 32), let key = try? Curve25519.Signing.PublicKey(rawRepresentation: raw)
    else {
        let fix = "Build the 64 hexadecimal digits into the app that export/run.py release-key prints."
        throw ReleaseError(expected: "a public key of 64 hexadecimal digits", found: "another text", fix: fix)
    }
    guard key.isValidSignature(signature, for: Data(payload.utf8)) else {
        let expected = "a release signed with the key \(publicKey.prefix(16))..."
        throw ReleaseError(expected: expected, found: "a changed text, or another key's signature", fix: again)
    }
    return try parse(payload, data)
}

private func parse(_ payload: String, _ text: Data) throws -> Release {
    let lines = payload.components(separatedBy: "\n").dropLast().map { $0.components(separatedBy: " ") }
    if let format = lines.first, format.count == 3, Array(format[0..<2]) == ["twinhash", "release"], format[2] != "1",
       Int(format[2]) != nil {
        let fix = "Update the app, which knows no later."
        throw ReleaseError(expected: "a release of format 1", found: "format \(format[2].prefix(9))", fix: fix)
    }
    guard payload.range(of: form, options: .regularExpression) != nil else {
        throw ReleaseError(expected: whole, found: "a payload that is not as Twinhash writes it", fix: again)
    }
    func files(_ kind: String) -> [ReleaseFile] {
        let rows = lines.dropFirst(5).filter { $0[0] == kind }
        return rows.map { ReleaseFile(name: $0[3], bytes: Int($0[2]) ?? 0, sha256: $0[1]) }
    }
    let names = ["release.json"] + (files("file") + files("gallery")).map { $0.name.lowercased() }
    if let twice = Dictionary(grouping: names, by: { $0 }).values.first(where: { $0.count > 1 }) {
        throw ReleaseError(expected: whole, found: "the name \(twice[0]) twice", fix: again)
    }
    return Release(
        version: Int(lines[1][1]) ?? 0, codeSpace: lines[2][1], student: lines[3][1], created: lines[4][1],
        files: files("file"), gallery: files("gallery"), payload: payload, text: text)
}

private func unhex(_ digits: String, count: Int) -> Data? {
    let values = digits.utf8.compactMap { digit -> UInt8? in
        switch digit {
        case 48...57: return digit - 48
        case 97...102: return digit - 87
        default: return nil
        }
    }
    guard digits.utf8.count == 2 * count, values.count == 2 * count else { return nil }
    return Data((0..<count).map { values[2 * $0] << 4 | values[2 * $0 + 1] })
}

/// What an app does with a release whose signature was verified.  A student of the same code space is updated alone,
/// one of another only together with its gallery.  Throws for a version below the pinned or the installed one, for the
/// installed version with other content, and for another code space without its gallery.
public func checkUpdate(_ release: Release, _ client: ReleaseClient) throws -> ReleaseUpdate {
    let version = release.version
    let least = max(client.pinned, client.installed?.version ?? 0)
    if version < least {
        let why = least == client.pinned ? "pinned" : "installed"
        let fix = "Keep what is installed; publish this content as version \(least + 1) or later."
        let expected = "version \(least), which is \(why), or a later one"
        throw ReleaseError(expected: expected, found: "version \(version)", fix: fix)
    }
    if let installed = client.installed, version == installed.version {
        if release.payload == installed.payload { return .none }
        let fix = "Keep what is installed; publish the new content as version \(version + 1)."
        let expected = "version \(version) as it is installed"
        throw ReleaseError(expected: expected, found: "the same version of other content", fix: fix)
    }
    if !release.gallery.isEmpty { return .both }
    var spaces = [client.space]
    if let installed = client.installed, !installed.gallery.isEmpty { spaces.append(installed.codeSpace) }
    if let other = spaces.first(where: { $0 != release.codeSpace }) {
        let expected = "a release of the gallery's code space \(other), or one that brings its own gallery"
        let fix = "Keep what is installed; publish the release with its gallery: release --gallery FOLDER."
        let found = "code space \(release.codeSpace) without a gallery"
        throw ReleaseError(expected: expected, found: found, fix: fix)
    }
    return .student
}

/// Throws unless a downloaded file is the one that was signed; a larger one is not read.
public func checkFile(at url: URL, _ file: ReleaseFile) throws {
    let expected = "\(file.name) of \(file.bytes) bytes, sha256 \(file.sha256.prefix(16))"
    let size = (try? FileManager.default.attributesOfItem(atPath: url.path)[.size]) as? Int
    guard size == file.bytes, let data = try? Data(contentsOf: url, options: .mappedIfSafe) else {
        let found = size.map { "\($0) bytes" } ?? "no file"
        throw ReleaseError(expected: expected, found: found, fix: "Download the file again.")
    }
    let found = SHA256.hash(data: data).map { String(format: "%02x", $0) }.joined()
    guard found == file.sha256 else {
        let what = "\(data.count) bytes, sha256 \(found.prefix(16))"
        throw ReleaseError(expected: expected, found: what, fix: "Download the file again.")
    }
}
