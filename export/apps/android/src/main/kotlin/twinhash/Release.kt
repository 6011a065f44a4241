package twinhash

import java.io.File
import java.io.FileOutputStream
import java.io.IOException
import java.io.InputStream
import java.security.GeneralSecurityException
import java.security.KeyFactory
import java.security.MessageDigest
import java.security.Provider
import java.security.Security
import java.security.Signature
import java.security.spec.X509EncodedKeySpec
import org.json.JSONException
import org.json.JSONObject

/** A file to download: its name, without folders, its bytes and their SHA-256. */
data class ReleaseFile(val name: String, val bytes: Long, val sha256: String)

/** One version of what an app downloads. [text]: that of release.json; [payload]: what was signed. */
class Release internal constructor(val payload: String, val text: String) {
    private val lines = payload.split("\n").dropLast(1).map { it.split(" ") }
    val version = lines[1][1].toInt()
    val codeSpace = lines[2][1]
    val student = lines[3][1]
    val created = lines[4][1]
    val files = filesOf("file")
    val gallery = filesOf("gallery")

    private fun filesOf(kind: String) =
        lines.drop(5).filter { it[0] == kind }.map { ReleaseFile(it[3], it[2].toLong(), it[1]) }
}

/**
 * [space]: the code space of the gallery in use; once a release has brought a gallery, that release's.
 * [pinned]: the lowest version that the app takes.
 */
class ReleaseClient(val space: String, val installed: Release? = null, val pinned: Int = 0)

/** Nothing, as it is installed; the student alone; the student together with the gallery. */
enum class ReleaseUpdate { NONE, STUDENT, BOTH }

/** Something that is not to be installed; keep what is. */
class ReleaseException(val expected: String, val found: String, val fix: String) :
    Exception("expected $expected; found $found. $fix")

const val MAX_RELEASE = 65536 // bytes

private const val WHOLE = "a whole release.json of Twinhash"
private const val AGAIN =
    "Download it again; if that does not help, do not install it: it is not what was signed with the app's key."
private const val LINE = """ [0-9a-f]{64} [1-9][0-9]{0,9} [A-Za-z0-9_](?:[A-Za-z0-9._-]{0,98}[A-Za-z0-9_-])?\n"""
private val PAYLOAD = Regex(
    """twinhash release 1\nversion [1-9][0-9]{0,8}\ncode_space [0-9a-f]{16}\nstudent [A-Za-z0-9._/:-]{1,100}\n""" +
        """created [0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z\n""" +
        "(?:file$LINE){1,64}(?:gallery$LINE){0,64}",
)

/**
 * Verifies the signature of a release.json, then reads it; a [ReleaseException] for whatever the key did not sign.
 *
 *     val release = readRelease(downloaded, publicKey)
 *     val update = checkUpdate(release, ReleaseClient(spaceOfTheGallery, installed, pinned = 2))
 *     // download the files into one folder, then
 *     installFiles(release, client, downloads, File(context.filesDir, "twinhash"), setOf("query-w8a32.tflite"))
 *
 * [publicKey]: the 64 hexadecimal digits that `export/run.py release-key` prints, part of the app, never downloaded.
 * [provider]: of Ed25519. A JVM has it from Java 15; Android only in newer versions of its Conscrypt module, so ship one:
 * `BouncyCastleProvider()` of org.bouncycastle:bcprov-jdk18on.
 */
fun readRelease(data: ByteArray, publicKey: String, provider: Provider? = null): Release {
    val (payload, signature, text) = split(data)
    if (!verifies(payload, signature, publicKey, provider)) {
        val expected = "a release signed with the key ${publicKey.take(16)}..."
        throw ReleaseException(expected, "a changed text, or another key's signature", AGAIN)
    }
    return parse(payload, text)
}

private fun split(data: ByteArray): Triple<String, String, String> { // payload and signature of the text
    if (data.size > MAX_RELEASE) throw ReleaseException(WHOLE, "more than $MAX_RELEASE bytes", AGAIN)
    val text = String(data, Charsets.UTF_8)
    val record = try { // Android's JSONObject calls itself for whatever is nested: thousands of brackets end the process
        if (text.count { it == '{' || it == '[' } > 1) throw JSONException("nested")
        JSONObject(text)
    } catch (error: JSONException) {
        throw ReleaseException(WHOLE, "what is no JSON object", AGAIN)
    }
    val (payload, signature) = listOf("payload", "signature").map { record.opt(it) as? String }
    if (record.length() != 2 || payload == null || signature == null || !Regex("[0-9a-f]{128}").matches(signature)) {
        throw ReleaseException(WHOLE, "no payload and signature of the right form", AGAIN)
    }
    return Triple(payload, signature, text)
}

private fun parse(payload: String, text: String): Release { // a payload whose signature was verified
    val format = Regex("^twinhash release ([0-9]{1,9})\n").find(payload)?.groupValues?.get(1)
    if (format != null && format != "1") {
        throw ReleaseException("a release of format 1", "format $format", "Update the app, which knows no later.")
    }
    if (!PAYLOAD.matches(payload)) throw ReleaseException(WHOLE, "a payload that is not as Twinhash writes it", AGAIN)
    val release = Release(payload, text)
    val names = listOf("release.json") + (release.files + release.gallery).map { it.name.lowercase() }
    names.groupBy { it }.values.find { it.size > 1 }?.let {
        throw ReleaseException(WHOLE, "the name ${it[0]} twice", AGAIN)
    }
    return release
}

private fun verifies(payload: String, signature: String, publicKey: String, provider: Provider?): Boolean {
    if (!Regex("[0-9a-f]{64}").matches(publicKey)) {
        val fix = "Build the 64 hexadecimal digits into the app that export/run.py release-key prints."
        throw ReleaseException("a public key of 64 hexadecimal digits", "another text", fix)
    }
    // Android's key store has a name for Ed25519, but does not verify with a key from elsewhere
    val known = (if (provider != null) listOf(provider) else Security.getProviders().toList()).find {
        !it.name.startsWith("AndroidKeyStore") &&
            it.getService("KeyFactory", "Ed25519") != null && it.getService("Signature", "Ed25519") != null
    }
    if (known == null) {
        val fix = "Pass one: readRelease(data, publicKey, BouncyCastleProvider()), of org.bouncycastle:bcprov-jdk18on."
        throw ReleaseException("a security provider with Ed25519", provider?.name ?: "none", fix)
    }
    return try { // what stands before the key says that it is an Ed25519 key (RFC 8410)
        val encoded = X509EncodedKeySpec(unhex("302a300506032b6570032100$publicKey"))
        val verifier = Signature.getInstance("Ed25519", known)
        verifier.initVerify(KeyFactory.getInstance("Ed25519", known).generatePublic(encoded))
        verifier.update(payload.toByteArray())
        verifier.verify(unhex(signature))
    } catch (error: GeneralSecurityException) { // digits that are no point of the curve, or no signature at all
        false
    }
}

private fun unhex(digits: String) = digits.chunked(2) { it.toString().toInt(16).toByte() }.toByteArray()

/**
 * What an app does with a release whose signature was verified. A student of the same code space is updated alone, one
 * of another only together with its gallery. A [ReleaseException] for a version below the pinned or the installed one,
 * for the installed version with other content, and for another code space without its gallery.
 */
fun checkUpdate(release: Release, client: ReleaseClient): ReleaseUpdate {
    val installed = client.installed
    val least = maxOf(client.pinned, installed?.version ?: 0)
    if (release.version < least) {
        val why = if (least == client.pinned) "pinned" else "installed"
        val fix = "Keep what is installed; publish this content as version ${least + 1} or later."
        throw ReleaseException("version $least, which is $why, or a later one", "version ${release.version}", fix)
    }
    if (installed != null && release.version == installed.version) {
        if (release.payload == installed.payload) return ReleaseUpdate.NONE
        val fix = "Keep what is installed; publish the new content as version ${release.version + 1}."
        val expected = "version ${release.version} as it is installed"
        throw ReleaseException(expected, "the same version of other content", fix)
    }
    if (release.gallery.isNotEmpty()) return ReleaseUpdate.BOTH
    checkSpace(release, client.space)
    if (installed != null && installed.gallery.isNotEmpty()) checkSpace(release, installed.codeSpace)
    return ReleaseUpdate.STUDENT
}

private fun checkSpace(release: Release, space: String) {
    if (release.codeSpace != space) {
        val expected = "a release of the gallery's code space $space, or one that brings its own gallery"
        val fix = "Keep what is installed; publish the release with its gallery: release --gallery FOLDER."
        throw ReleaseException(expected, "code space ${release.codeSpace} without a gallery", fix)
    }
}

/** A [ReleaseException] unless a downloaded file is the one that was signed; a larger one is not read. */
fun checkFile(path: File, file: ReleaseFile) {
    val size = if (path.isFile) path.length() else -1
    val digest = MessageDigest.getInstance("SHA-256")
    if (size == file.bytes) try {
        path.inputStream().use { stream ->
            val buffer = ByteArray(1 shl 16)
            generateSequence { stream.read(buffer).takeIf { it >= 0 } }.forEach { digest.update(buffer, 0, it) }
        }
    } catch (error: IOException) {
        throw ReleaseException("${file.name}, to be read", error.message ?: "an error", "Download the file again.")
    }
    val sha256 = digest.digest().joinToString("") { "%02x".format(it) }
    if (size != file.bytes || sha256 != file.sha256) {
        val found = when (size) {
            -1L -> "no file"
            file.bytes -> "$size bytes, sha256 ${sha256.take(16)}"
            else -> "$size bytes"
        }
        val expected = "${file.name} of ${file.bytes} bytes, sha256 ${file.sha256.take(16)}"
        throw ReleaseException(expected, found, "Download the file again.")
    }
}

/**
 * Puts the downloaded files in place as [folder]/version/, whole or not at all: student/, gallery/ (the release's or,
 * where it brings none, that of the installed version, with the release that brought it) and release.json. An app uses
 * the folder of the highest number, and removes the lower ones itself when it has opened the new model.
 * [wanted]: of the student's files, those that this app runs; empty: all.
 * One call at a time for a [folder]: what a stopped one left there, version.partial, is removed.
 */
fun installFiles(
    release: Release, client: ReleaseClient, downloads: File, folder: File, wanted: Set<String> = setOf(),
): ReleaseUpdate {
    val update = checkUpdate(release, client)
    val missing = wanted - release.files.map { it.name }.toSet()
    if (missing.isNotEmpty()) {
        val fix = "Choose from ${release.files.joinToString { it.name }}."
        throw ReleaseException("files of release ${release.version}", missing.joinToString(), fix)
    }
    if (update == ReleaseUpdate.NONE) return update
    folder.listFiles { file -> file.name.endsWith(".partial") }?.forEach { it.deleteRecursively() }
    val (draft, place) = File(folder, "${release.version}.partial") to File(folder, "${release.version}")
    val old = client.installed?.let { File(folder, "${it.version}/gallery") }
    val kept = if (old == null || release.gallery.isNotEmpty()) null else installedGallery(old, client.installed, release)
    try {
        copy(release.files.filter { wanted.isEmpty() || it.name in wanted }, downloads, File(draft, "student"))
        val brought = kept ?: release
        if (brought.gallery.isNotEmpty()) {
            copy(brought.gallery, if (old != null && kept != null) old else downloads, File(draft, "gallery"))
            write(File(draft, "gallery/release.json"), brought.text.byteInputStream())
        }
        write(File(draft, "release.json"), release.text.byteInputStream())
        replace(draft, place)
    } catch (error: IOException) {
        val isFull = folder.usableSpace < (release.files + release.gallery).sumOf { it.bytes }
        val fix = if (isFull) "Free some space." else "Check that the app may write there, and try again."
        throw ReleaseException("a folder that can be written at $folder", error.message ?: "an error", fix)
    } finally {
        draft.deleteRecursively()
    }
    return update
}

private fun installedGallery(folder: File, installed: Release, release: Release): Release? {
    if (installed.gallery.isEmpty() && !folder.isDirectory) return null
    val fix = "Install a release that brings its gallery; for the same version again, name none as installed."
    val brought = try {
        val said = File(folder, "release.json")
        if (said.length() > MAX_RELEASE) throw IOException("more than $MAX_RELEASE bytes")
        val (payload, _, text) = split(said.readBytes())
        parse(payload, text).apply { gallery.forEach { checkFile(File(folder, it.name), it) } }
    } catch (error: IOException) {
        throw ReleaseException("the release.json that brought the gallery $folder", error.message ?: "an error", fix)
    } catch (error: ReleaseException) {
        throw ReleaseException("${error.expected} in $folder", error.found, fix)
    }
    checkSpace(release, brought.codeSpace)
    return brought
}

private fun copy(files: List<ReleaseFile>, source: File, target: File) {
    for (file in files) { // what is checked is what stays
        checkFile(File(source, file.name), file)
        File(source, file.name).inputStream().use { write(File(target, file.name), it) }
        checkFile(File(target, file.name), file)
    }
}

private fun write(path: File, data: InputStream) {
    path.parentFile?.mkdirs()
    FileOutputStream(path).use {
        data.copyTo(it)
        it.fd.sync() // or a name could stand for nothing after a loss of power
    }
}

private fun replace(draft: File, place: File) {
    val aside = File(place.path + ".old.partial") // of an installation that the app does not know
    if (place.exists() && !place.renameTo(aside)) throw IOException("$place cannot be moved aside")
    if (!draft.renameTo(place)) {
        aside.renameTo(place)
        throw IOException("$draft cannot be renamed to $place")
    }
    aside.deleteRecursively()
}
